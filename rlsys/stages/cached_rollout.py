"""Caches rollouts on disk until their iteration is in a checkpoint, for runs that resume."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from rlsys.batch import Rollouts, SampleRequest
from rlsys.engines.weights import Loaded, WeightUpdate
from rlsys.roles.rollout import Rollout
from rlsys.runtime.pending import Pending


class ChunkedRollout(Rollout, Protocol):
    """Engines that say what they draw together."""

    def chunks(self, requests: Sequence[SampleRequest]) -> list[list[SampleRequest]]:
        """The requests of every chunk that ``generate`` would draw."""
        ...


class CachedRollout:
    """Writes every chunk to ``folder/version-<n>`` as it arrives, and reads it back when the same
    requests come under the same weights. Missing chunks alone are sampled: an engine draws a chunk
    by itself, so its tokens do not depend on the others. Greedy answers are not cached.
    """

    def __init__(self, rollout: ChunkedRollout, folder: Path) -> None:
        self.rollout, self.root = rollout, folder
        self.folder = folder

    def load(self, update: WeightUpdate) -> Pending[Loaded]:
        weights = hashlib.sha256(repr(update.entries).encode()).hexdigest()[:16]
        self.folder = self.root / f"version-{update.version}-{weights}"
        return self.rollout.load(update)

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        if greedy:
            return self.rollout.generate(requests, greedy=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        return [self._chunk(chunk) for chunk in self.rollout.chunks(requests)]

    def _chunk(self, requests: Sequence[SampleRequest]) -> Pending[Rollouts]:
        name = hashlib.sha256(repr(requests).encode()).hexdigest()[:16]
        path = self.folder / f"{requests[0].prompt_index:09d}-{name}.pt"
        if path.exists():
            return Pending.of(Rollouts(**torch.load(path, weights_only=True)))
        (drawn,) = self.rollout.generate(requests)
        return drawn.map(partial(_write, path)).now()

    def evict(self, version: int) -> None:
        """Remove rollouts of weights older than ``version``."""
        for folder in self.root.glob("version-*"):
            if int(folder.name.split("-")[1]) < version:
                shutil.rmtree(folder)


def _write(path: Path, chunk: Rollouts) -> Rollouts:
    partial_path = path.with_name(f".{path.name}.tmp")
    with partial_path.open("wb") as stream:
        torch.save({f.name: getattr(chunk, f.name) for f in fields(chunk)}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial_path, path)
    return chunk

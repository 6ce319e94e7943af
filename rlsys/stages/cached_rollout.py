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
from rlsys.errors import DataError
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
        path = self.folder / _name(requests)
        if path.exists():
            return _read(path)
        (drawn,) = self.rollout.generate(requests)
        return drawn.map(partial(_write, path)).now()

    def kept(self, requests: list[SampleRequest], version: int) -> list[Pending[Rollouts]]:
        """The chunks of these requests that were drawn under weights of this version. Raises:
        DataError for one that is missing.
        """
        found = []
        for chunk in self.rollout.chunks(requests):
            paths = sorted(self.root.glob(f"version-{version}-*/{_name(chunk)}"))
            if not paths:
                raise DataError(
                    f"{self.root}: rollouts of weights version {version} that the next iteration "
                    f"trains on are missing (prompt {chunk[0].prompt_index}); delete "
                    f"{self.root.parent} to start the stage again"
                )
            found.append(_read(paths[0]))
        return found

    def evict(self, version: int) -> None:
        """Remove rollouts of weights older than ``version``."""
        for folder in self.root.glob("version-*"):
            if int(folder.name.split("-")[1]) < version:
                shutil.rmtree(folder)


def _name(requests: Sequence[SampleRequest]) -> str:
    digest = hashlib.sha256(repr(requests).encode()).hexdigest()[:16]
    return f"{requests[0].prompt_index:09d}-{digest}.pt"


def _read(path: Path) -> Pending[Rollouts]:
    return Pending.of(Rollouts(**torch.load(path, weights_only=True)))


def _write(path: Path, chunk: Rollouts) -> Rollouts:
    partial_path = path.with_name(f".{path.name}.tmp")
    with partial_path.open("wb") as stream:
        torch.save({f.name: getattr(chunk, f.name) for f in fields(chunk)}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial_path, path)
    return chunk

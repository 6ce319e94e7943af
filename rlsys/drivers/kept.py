"""Rollouts kept on disk: what was drawn once is not drawn again after a stop."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from rlsys.batch import Rollouts, SampleRequest
from rlsys.roles import Pending, Rollout
from rlsys.weights import WeightUpdate


class KeptRollout:
    """Engines that write every chunk to ``folder/version-<n>`` as it arrives, and answer requests
    they have already served under these weights from there. Greedy answers are not kept.
    """

    def __init__(self, rollout: Rollout, folder: Path) -> None:
        self.rollout, self.root = rollout, folder
        self.folder = folder

    def load(self, update: WeightUpdate) -> Pending[int]:
        self.folder = self.root / f"version-{update.version}"
        return self.rollout.load(update)

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        if greedy:
            return self.rollout.generate(requests, greedy=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {(request.prompt_index, request.sample_index) for request in requests}
        kept = [chunk for chunk in map(_read, sorted(self.folder.glob("*.pt")))]
        kept = [chunk for chunk in kept if _keys(chunk) <= wanted]
        known = {key for chunk in kept for key in _keys(chunk)}
        rest = [r for r in requests if (r.prompt_index, r.sample_index) not in known]
        drawn = self.rollout.generate(rest) if rest else []
        write = _writer(self.folder)
        return [*(Pending.of(chunk) for chunk in kept), *(chunk.map(write) for chunk in drawn)]

    def forget(self, version: int) -> None:
        """What was drawn under older weights than ``version``."""
        for folder in self.root.glob("version-*"):
            if int(folder.name.removeprefix("version-")) < version:
                shutil.rmtree(folder)


def _writer(folder: Path) -> Callable[[Rollouts], Rollouts]:
    def write(chunk: Rollouts) -> Rollouts:
        name = f"{int(chunk.prompt_index[0]):09d}-{int(chunk.sample_index[0]):05d}.pt"
        partial = folder / f".{name}.tmp"
        torch.save({field.name: getattr(chunk, field.name) for field in fields(chunk)}, partial)
        os.replace(partial, folder / name)
        return chunk

    return write


def _read(path: Path) -> Rollouts:
    return Rollouts(**torch.load(path, weights_only=True))


def _keys(chunk: Rollouts) -> set[tuple[int, int]]:
    return set(zip(chunk.prompt_index.tolist(), chunk.sample_index.tolist(), strict=True))

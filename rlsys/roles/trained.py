"""Base of all trained workers: engine, gradient accumulation, additive metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.engines.registry import build_engine
from rlsys.micro_batches import Tokens
from rlsys.models.heads import TrunkModule, checkpoint_activations
from rlsys.roles.factory import WorkerContext
from rlsys.roles.forward import planned
from rlsys.runtime.group import RoleHandle, S
from rlsys.runtime.pending import Metrics, Pending
from rlsys.runtime.trace import span


@dataclass(frozen=True)
class Training:
    """How a role trains. total_steps: optimiser steps of the whole stage, for the schedule; seed:
    of random initialisation.
    """

    train: TrainConfig
    optim: OptimConfig
    total_steps: int
    seed: int


@dataclass
class Stats:
    """Metrics of one rank. ``shares`` add over ranks and are already divided by global counts;
    ``common`` are equal on all ranks.
    """

    shares: Metrics = field(default_factory=dict)
    common: Metrics = field(default_factory=dict)

    def add(self, shares: Metrics) -> None:
        for name, value in shares.items():
            self.shares[name] = self.shares.get(name, 0.0) + value


def merge_stats(parts: Sequence[Stats]) -> Metrics:
    """Metrics merged over all ranks."""
    merged = dict(parts[0].common)
    for part in parts:
        for name, value in part.shares.items():
            merged[name] = merged.get(name, 0.0) + value
    return merged


MicroLoss = Callable[[list[int], bool], tuple[Tensor, Metrics]]
"""(rows, is_real) -> (loss share, metric shares) of one micro-batch."""


class TrainedWorker:
    """A module under a training engine. Ranks of a group call its methods in the same order."""

    def __init__(self, module: TrunkModule, context: WorkerContext, training: Training) -> None:
        self.context = context
        module.cache = context.features
        if training.train.gradient_checkpointing:
            checkpoint_activations(module)
        self.engine = build_engine(
            module, training.train, training.optim, training.total_steps, context.rank
        )
        self.engine.module.eval()

    def train_step(
        self, plan: list[list[int]], dummy_row: int, micro_loss: MicroLoss, stats: Stats
    ) -> None:
        """One optimiser step over this rank's micro-batches."""
        self.accumulate(plan, dummy_row, micro_loss, stats)
        with span("step"):
            stats.common |= self.engine.step()
        self.engine.module.eval()

    def accumulate(
        self, plan: list[list[int]], dummy_row: int, micro_loss: MicroLoss, stats: Stats
    ) -> None:
        """Backward passes over this rank's micro-batches, without a step.

        An empty micro-batch runs the row ``dummy_row`` with ``is_real`` False, whose loss must be
        zero: ranks must call collectives equally often, and the vision tower must run in each.
        """
        self.engine.module.train()
        for rows in plan:
            with span("forward"):
                loss, shares = micro_loss(rows or [dummy_row], bool(rows))
            with span("backward"):
                self.engine.backward(loss)
            stats.add(shares)

    def plan(self, rows: Sequence[int], tokens: Sequence[Tokens]) -> list[list[int]]:
        """This rank's micro-batches. Args: tokens: by row."""
        return planned(self.context, rows, tokens)

    def save_model(self, folder: Path) -> None:
        """A checkpoint that ``transformers`` loads. Collective."""
        raise NotImplementedError

    def save_state(self, folder: Path, name: str) -> None:
        """Weights, optimiser, schedule and random state under ``folder/name``. Collective."""
        self.engine.save(folder, name)
        torch.save(_random_state(), self._random_file(folder, name))

    def load_state(self, folder: Path, name: str) -> None:
        """Load what ``save_state`` wrote. Collective."""
        self.engine.load(folder, name)
        state = torch.load(self._random_file(folder, name), weights_only=True)
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])

    def _random_file(self, folder: Path, name: str) -> Path:
        return folder / name / f"random-{self.context.rank.rank}.pt"


def _random_state() -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


class TrainedHandle(RoleHandle[S]):
    """A trained role: saved as a model, and saved and restored with its optimiser."""

    def save(self, folder: Path) -> Pending[list[None]]:
        """A checkpoint that ``transformers`` loads, in ``folder``."""
        return self._all(TrainedWorker.save_model, folder)

    def save_state(self, folder: Path) -> Pending[list[None]]:
        """Weights, optimiser, schedule and random state, in ``folder/<role>``."""
        return self._all(TrainedWorker.save_state, folder, self.role)

    def load_state(self, folder: Path) -> Pending[list[None]]:
        """Load what ``save_state`` wrote with the same number of ranks."""
        return self._all(TrainedWorker.load_state, folder, self.role)

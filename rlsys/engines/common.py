"""What every trained worker shares: its seat, the accumulation loop, statistics that add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rlsys.data.encoder import PromptEncoder
from rlsys.engines.train import Metrics, Rank, TrainEngine


@dataclass(frozen=True)
class Seat:
    """Where a worker runs and what it reads. ``budget``: padded tokens per forward pass."""

    rank: Rank
    encoder: PromptEncoder
    budget: int


@dataclass
class Stats:
    """``shares`` add over ranks and are already divided by global counts; ``common`` is equal."""

    shares: Metrics = field(default_factory=dict)
    common: Metrics = field(default_factory=dict)

    def add(self, shares: Metrics) -> None:
        for name, value in shares.items():
            self.shares[name] = self.shares.get(name, 0.0) + value


def merge_stats(parts: Sequence[Stats]) -> Metrics:
    """One set of numbers from all ranks."""
    merged = dict(parts[0].common)
    for part in parts:
        for name, value in part.shares.items():
            merged[name] = merged.get(name, 0.0) + value
    return merged


ShareLoss = Callable[[list[int], bool], tuple[Tensor, Metrics]]


def train_step(
    engine: TrainEngine, plan: list[list[int]], spare: int, share: ShareLoss, stats: Stats
) -> None:
    """One optimiser step over this rank's micro-batches.

    ``share(rows, real)`` gives the micro-batch's loss share. An empty micro-batch runs the row
    ``spare`` with ``real`` False, whose share must be zero: ranks must call collectives equally
    often, and the vision tower must run in each.
    """
    engine.module.train()
    for micro in plan:
        loss, shares = share(micro or [spare], bool(micro))
        engine.backward(loss)
        stats.add(shares)
    stats.common |= engine.step()
    engine.module.eval()

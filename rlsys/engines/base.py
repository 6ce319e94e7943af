"""What a training engine must do. Loss shares add: over micro-batches and over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from rlsys.runtime.pending import Metrics


class TrainEngine(Protocol):
    """What a trained role needs. Ranks of a group call the methods in the same order."""

    module: nn.Module

    def forward(self, *args: Any) -> Tensor: ...

    def backward(self, loss: Tensor) -> None:
        """``loss`` is this micro-batch's share: shares of all micro-batches and ranks add up."""
        ...

    def step(self) -> Metrics:
        """One optimiser step: grad_norm before clipping, lr."""
        ...

    def full_params(self, *, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by name. Collective: every rank must exhaust it."""
        ...

    def save(self, folder: Path, tag: str) -> None:
        """Weights, optimiser and schedule under ``folder/tag``. Collective."""
        ...

    def load(self, folder: Path, tag: str) -> None:
        """What ``save`` wrote with as many ranks. Collective."""
        ...

"""What a transport of weights must do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from rlsys.engines.weights import WeightUpdate


class WeightWriter(Protocol):
    """The trainers' side of a transport."""

    def publish(self, version: int, tensors: Sequence[tuple[str, Tensor]]) -> WeightUpdate:
        """Make the tensors readable under ``version``, in place of the version before."""
        ...


class WeightReader(Protocol):
    """The engines' side of a transport."""

    def read(self, update: WeightUpdate) -> Iterable[tuple[str, Tensor]]:
        """Raises: SyncError for a tensor that is not the one that was sent."""
        ...


class Transport(Protocol):
    """Makes both sides. ``token`` names the run, so that runs on one node do not collide."""

    def writer(self, token: str) -> WeightWriter: ...

    def reader(self) -> WeightReader: ...

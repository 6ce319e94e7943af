"""Protocols of weight transports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from rlsys.engines.weights import WeightUpdate


class WeightWriter(Protocol):
    """The trainers' side of a transport."""

    def publish(self, version: int, tensors: Sequence[tuple[str, Tensor]]) -> WeightUpdate:
        """Make the tensors readable under ``version``, replacing the previous version."""
        ...


class WeightReader(Protocol):
    """The engines' side of a transport."""

    def read(self, update: WeightUpdate) -> Iterable[tuple[str, Tensor]]:
        """Names and verified tensors. Raises: SyncError for a fingerprint that differs."""
        ...


class Transport(Protocol):
    """Creates both sides. ``token`` names the run, so that runs on one node do not collide."""

    def writer(self, token: str) -> WeightWriter: ...

    def reader(self) -> WeightReader: ...

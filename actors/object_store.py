"""Ray's object store as a transport of weights: works across nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import ray
from torch import Tensor

from rlsys.engines.transports.base import Transport
from rlsys.engines.transports.registry import TRANSPORTS
from rlsys.engines.weights import WeightUpdate, buffer_size, lay_out, pack, unpack

NAME = "ray"
FETCH_SECONDS = 1800.0  # a driver waits for less


class ObjectWriter:
    """One buffer per version in the object store."""

    def __init__(self) -> None:
        self._current: ray.ObjectRef | None = None

    def publish(self, version: int, tensors: Sequence[tuple[str, Tensor]]) -> WeightUpdate:
        entries = lay_out(tensors)
        buffer = np.empty(buffer_size(entries), dtype=np.uint8)
        pack(entries, dict(tensors), buffer)
        self._current = ray.put(buffer)  # the owner keeps it alive until the next version
        return WeightUpdate(version, entries, NAME, [self._current])


class ObjectReader:
    """The engines' side."""

    def read(self, update: WeightUpdate) -> Iterable[tuple[str, Tensor]]:
        buffer = ray.get(update.handle[0], timeout=FETCH_SECONDS)
        return unpack(update, buffer.copy())


class ObjectStore:
    """Transport through Ray's object store."""

    def writer(self, token: str) -> ObjectWriter:
        return ObjectWriter()

    def reader(self) -> ObjectReader:
        return ObjectReader()


CLUSTER_TRANSPORTS: dict[str, Transport] = {**TRANSPORTS, NAME: ObjectStore()}

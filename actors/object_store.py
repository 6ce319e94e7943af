"""Ray's object store as a transport of weights: works across nodes.

A node receives a bucket once, for all its engines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from rlsys.config.engine import RAY
from rlsys.engines.fingerprints import Bytes
from rlsys.engines.transports.base import Fill
from rlsys.engines.transports.registry import TRANSPORTS
from rlsys.engines.weights import WeightUpdate
from rlsys.errors import SyncError
from rlsys.registries import by_name

NAME = RAY


class ObjectWriter:
    """One object per bucket."""

    def __init__(self) -> None:
        self._buffer: Bytes = np.empty(0, dtype=np.uint8)
        self._current: list[ray.ObjectRef] = []

    def publish(self, sizes: Sequence[int], fill: Fill) -> list[ray.ObjectRef]:
        self._current = []  # the owner keeps objects alive until the next version
        if len(self._buffer) < max(sizes):
            self._buffer = np.empty(max(sizes), dtype=np.uint8)
        for number, size in enumerate(sizes):
            fill(number, self._buffer[:size])
            self._current.append(ray.put(self._buffer[:size]))
        return list(self._current)


class ObjectReader:
    """The engines' side. A bucket is copied: objects are read-only, which torch cannot express."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._buffer: Bytes = np.empty(0, dtype=np.uint8)

    def read(self, update: WeightUpdate, number: int) -> Bytes:
        try:
            received: Bytes = ray.get(update.handle[number], timeout=self.timeout)
        except (GetTimeoutError, ObjectLostError, IndexError) as error:
            raise SyncError(
                f"weights version {update.version}: read: bucket {number} of {len(update.buckets)} "
                f"did not arrive within {self.timeout:.0f} s ({type(error).__name__})"
            ) from error
        if len(self._buffer) < len(received):
            self._buffer = np.empty(len(received), dtype=np.uint8)
        self._buffer[: len(received)] = received
        return self._buffer[: len(received)]


class ObjectStore:
    """Transport through Ray's object store."""

    def writer(self, token: str, timeout: float, address: str = "") -> ObjectWriter:
        return ObjectWriter()

    def reader(self, timeout: float) -> ObjectReader:
        return ObjectReader(timeout)


CLUSTER_TRANSPORTS = by_name("transport", [*TRANSPORTS.items(), (NAME, ObjectStore())])

"""How weights travel from trainers to engines: shared memory, or the object store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import ray
from torch import Tensor

from rlsys.weights import (
    SharedMemoryReader,
    SharedMemoryWriter,
    WeightUpdate,
    WeightWriter,
    buffer_size,
    lay_out,
    pack,
    unpack,
)

SHM_ROOT = Path("/dev/shm")
FETCH_SECONDS = 60.0


class ObjectWriter:
    """One buffer per version in the object store; works across nodes."""

    def __init__(self) -> None:
        self._current: ray.ObjectRef | None = None

    def publish(self, version: int, tensors: Sequence[tuple[str, Tensor]]) -> WeightUpdate:
        plan = lay_out(version, tensors, None)
        buffer = np.empty(buffer_size(plan), dtype=np.uint8)
        pack(plan, dict(tensors), buffer)
        self._current = ray.put(buffer)  # the owner keeps it alive until the next version
        return WeightUpdate(version, plan.entries, [self._current])


class AnyReader:
    """The engines' side of both: a path is a mapping, anything else is in the object store."""

    def __init__(self) -> None:
        self._mapped = SharedMemoryReader()

    def read(self, update: WeightUpdate) -> Iterable[tuple[str, Tensor]]:
        """Raises: SyncError for a tensor that is not the one that was sent."""
        if isinstance(update.handle, str):
            return self._mapped.read(update)
        buffer = ray.get(update.handle[0], timeout=FETCH_SECONDS)
        return unpack(update, buffer.copy())


def make_writer(transport: str, token: str) -> WeightWriter:
    if transport == "ray":
        return ObjectWriter()
    return SharedMemoryWriter(shm_folder(token) / "policy.weights")


def shm_folder(token: str) -> Path:
    """Where a run keeps its mappings; removed when the run ends."""
    return SHM_ROOT / f"rlsys-{token}"

"""Shared memory: trainers and engines on one node, no copy on the engines' side."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from rlsys.config.engine import SHM
from rlsys.engines.fingerprints import Bytes
from rlsys.engines.transports.base import Fill
from rlsys.engines.weights import WeightUpdate, bucket_size
from rlsys.errors import SyncError
from rlsys.leftovers import shared_folder

NAME = SHM


class SharedMemoryWriter:
    """One mapping under /dev/shm that every engine on this node reads without a copy.

    The mapping is reused for every version: allocating pages costs more than the copy itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: Bytes = np.empty(0, dtype=np.uint8)

    def publish(self, sizes: Sequence[int], fill: Fill) -> str:
        ends = list(accumulate(sizes))
        if len(self._map) < ends[-1]:
            self._map = self._allocate(ends[-1])
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            fill(number, self._map[end - size : end])
        return str(self.path)

    def close(self) -> None:
        self._map = np.empty(0, dtype=np.uint8)
        self.path.unlink(missing_ok=True)

    def _allocate(self, size: int) -> Bytes:
        """A new file: readers keep the old one. A page that is missing later would kill us."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
                return np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SyncError(
                f"publish: {size >> 20} MiB of shared memory for the weights on host "
                f"{socket.gethostname()}: {error}"
            ) from error


class SharedMemoryReader:
    """The engines' side of the mapping."""

    def __init__(self) -> None:
        self._maps: dict[tuple[str, int, int], Bytes] = {}

    def read(self, update: WeightUpdate, number: int) -> Bytes:
        sizes = [bucket_size(bucket) for bucket in update.buckets]
        start = sum(sizes[:number])
        return self._mapping(update)[start : start + sizes[number]]

    def _mapping(self, update: WeightUpdate) -> Bytes:
        try:
            status = os.stat(update.handle)
            key = (update.handle, status.st_ino, status.st_size)
            if key not in self._maps:
                self._maps = {key: np.memmap(update.handle, dtype=np.uint8, mode="c")}
        except OSError as error:
            raise SyncError(
                f"weights version {update.version}: read: {error} on host {socket.gethostname()}; "
                "engines on another host than the policy need `engine.transport: auto` or `ray`"
            ) from error
        return self._maps[key]


class SharedMemory:
    """Transport through shared memory."""

    def writer(self, token: str, timeout: float, address: str = "") -> SharedMemoryWriter:
        return SharedMemoryWriter(shared_folder(token) / "policy.weights")

    def reader(self, timeout: float) -> SharedMemoryReader:
        return SharedMemoryReader()

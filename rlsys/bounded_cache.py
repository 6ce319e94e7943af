"""A cache of bounded size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """The latest used values, at most ``limit`` bytes. Safe to use from several threads."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit, self.nbytes = limit, 0
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: V, nbytes: int) -> None:
        with self._lock:
            if key in self._values:
                self.nbytes -= self._values.pop(key)[1]
            self._values[key] = (value, nbytes)
            self.nbytes += nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._values.popitem(last=False)[1][1]

"""Encoded prompts, and those that a process keeps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EncodedPrompt:
    """expanded [P] holds one id per visual token, collapsed one placeholder per image; pixels: as
    ``Family.pixels``, empty without an image.
    """

    expanded: Tensor
    collapsed: list[int]
    pixels: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.expanded, *self.pixels.values()))


class EncodedCache:
    """The latest used prompts of all encoders that share it, at most ``limit`` bytes.

    A process has one: every stage has encoders of its own, and those of finished stages would keep
    their pixels beside the next stage's.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit, self.nbytes = limit, 0
        self._prompts: OrderedDict[Hashable, EncodedPrompt] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> EncodedPrompt | None:
        with self._lock:
            if key in self._prompts:
                self._prompts.move_to_end(key)
            return self._prompts.get(key)

    def put(self, key: Hashable, prompt: EncodedPrompt) -> None:
        with self._lock:
            if key in self._prompts:
                self.nbytes -= self._prompts.pop(key).nbytes
            self._prompts[key] = prompt
            self.nbytes += prompt.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._prompts.popitem(last=False)[1].nbytes

"""Encoded prompts, and those that a process keeps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlsys.bounded_cache import BoundedCache
from rlsys.models.features import Pixels


@dataclass(frozen=True)
class EncodedPrompt:
    """expanded [P] holds one id per visual token, collapsed one placeholder per image; pixels: as
    ``Family.pixels``, empty without an image.
    """

    expanded: Tensor
    collapsed: list[int]
    pixels: Pixels

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.expanded, *self.pixels.values()))


class EncodedCache(BoundedCache[EncodedPrompt]):
    """The prompts of all encoders that share it. A process has one: the stages of a run show the
    same pictures again and again.
    """

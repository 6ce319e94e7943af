"""The contents of a weight sync, and fingerprints that verify the transfer.

A fingerprint is an integer sum over a tensor's bit patterns, each weighted by its index, modulo
2^64. Sums over the pieces of a tensor add up to the sum over the whole, so shards can be checked
without being gathered, and a swapped or shifted piece is detected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlsys.errors import SyncError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)  # odd; gives neighbouring indices very different weights
_ALIGN = 64


def fingerprint(tensor: Tensor, offset: int = 0) -> int:
    """Additive, index-weighted checksum; ``offset`` is the piece's first flat index in its tensor.

    fingerprint(t) == (fingerprint(t[:k]) + fingerprint(t[k:], offset=k)) mod 2^64 for flat t.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    bits = flat.view(_BITS[flat.element_size()]).to(torch.int64)
    indices = torch.arange(offset, offset + len(bits), dtype=torch.int64, device=bits.device)
    return int((bits * (indices * _SPREAD | 1)).sum()) % (1 << 64)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of an update: its bytes in the buffer, and its fingerprint."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    fingerprint: int


@dataclass(frozen=True)
class WeightUpdate:
    """A version of the trained weights, readable through ``handle`` by its ``transport``."""

    version: int
    entries: tuple[TensorEntry, ...]
    transport: str
    handle: Any

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


def lay_out(tensors: Sequence[tuple[str, Tensor]]) -> tuple[TensorEntry, ...]:
    """Plan a flat buffer for the tensors and fingerprint each."""
    entries, start = [], 0
    for name, tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.")
        entry = TensorEntry(name, dtype, tuple(tensor.shape), start, nbytes, fingerprint(tensor))
        entries.append(entry)
        start += -(-nbytes // _ALIGN) * _ALIGN
    return tuple(entries)


def pack(entries: Sequence[TensorEntry], tensors: Mapping[str, Tensor], buffer: np.ndarray) -> None:
    """Copy the tensors' bytes into ``buffer`` (uint8) as laid out."""
    for entry in entries:
        source = tensors[entry.name].detach().contiguous().reshape(-1).view(torch.uint8)
        buffer[entry.start : entry.start + entry.nbytes] = source.cpu().numpy()


def unpack(update: WeightUpdate, buffer: np.ndarray) -> Iterable[tuple[str, Tensor]]:
    """Views of the buffer, each verified by its fingerprint.

    Raises: SyncError naming a tensor whose fingerprint differs.
    """
    for entry in update.entries:
        raw = buffer[entry.start : entry.start + entry.nbytes]
        tensor = torch.from_numpy(raw).view(getattr(torch, entry.dtype)).reshape(entry.shape)
        actual = fingerprint(tensor)
        if actual != entry.fingerprint:
            raise SyncError(
                f"weights version {update.version}: tensor {entry.name} arrived with fingerprint "
                f"{actual:016x}, sent with {entry.fingerprint:016x}"
            )
        yield entry.name, tensor


def buffer_size(entries: Sequence[TensorEntry]) -> int:
    """Bytes of the buffer that ``lay_out`` planned."""
    last = entries[-1]
    return last.start + last.nbytes

"""The engines' half of a weight sync, inside vLLM: weights in place, and the count of what arrived.

Linear layers keep their weights as plain parameters. On CPU vLLM would repack them, which costs
several times the transfer, leaves the copy of a tied head stale, and overwrites a whole fused layer
(q, k and v) when only a part of it is trained.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlsys.engines.transports.base import WeightReader
from rlsys.engines.weights import Phases, WeightUpdate, unpack
from rlsys.errors import SyncError


@contextmanager
def plain_linears() -> Iterator[None]:
    """Linear layers that vLLM makes in the block are not repacked for the CPU."""
    from vllm.model_executor.layers import utils

    packed = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = _plain_linear
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = packed


def _plain_linear(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def load_counted(model: Any, tensors: Sequence[tuple[str, Tensor]]) -> dict[str, int]:
    """Load tensors, by their checkpoint names, into a vLLM model's own.

    Returns: name -> how many of its elements were written. Raises: SyncError naming the tensor at
    which the model's loader failed.
    """
    current = "none"

    def stream() -> Iterator[tuple[str, Tensor]]:
        nonlocal current
        for name, tensor in tensors:
            current = name
            yield name, tensor

    with torch.no_grad(), _Copies(tensors) as copies:
        try:
            model.load_weights(stream())
        except (AssertionError, AttributeError, LookupError, RuntimeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SyncError(f"load: tensor {current}: {reason}") from error
    return copies.written


class _Copies(TorchDispatchMode):
    """Counts the elements copied out of each tensor; whose they are is known by their address."""

    def __init__(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        super().__init__()
        self.written = {name: 0 for name, _ in tensors}
        self._sources = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, n) for n, t in tensors)
        self._moved: list[Tensor] = []  # kept, so that no other tensor gets its address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default and (name := self._name(args[1])):
            self.written[name] += args[1].numel()
        elif func in _MOVES and (name := self._name(args[0])):
            self._moved.append(result)
            insort(self._sources, (result.data_ptr(), result.data_ptr() + result.nbytes, name))
        return result

    def _name(self, tensor: Tensor) -> str | None:
        index = bisect_right(self._sources, tensor.data_ptr(), key=lambda source: source[0])
        start, end, name = self._sources[index - 1] if index else (0, 0, "")
        return name if start <= tensor.data_ptr() < end else None


_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)


def check_written(
    tensors: Sequence[tuple[str, Tensor]], written: Mapping[str, int], ranks: int = 1
) -> None:
    """Check that every tensor was written once and whole. Args: ranks: that share the model; with
    several, each writes at least its share of a tensor.

    Raises: SyncError naming the first that was not.
    """
    for name, tensor in tensors:
        count, size = written[name], tensor.numel()
        if count == 0 or (ranks == 1 and count != size):
            raise SyncError(
                f"load: tensor {name}: the engine's model took {count} of {size} elements"
            )


def load_bucket(
    model: Any, reader: WeightReader, update: WeightUpdate, number: int, phases: Phases,
    ranks: int = 1,
) -> None:  # fmt: skip
    """Read a bucket, verify it, load it into vLLM's model, and check that all of it was taken.
    Raises: SyncError.
    """
    with phases.timed("read"):
        buffer = reader.read(update, number)
    tensors = unpack(update.version, update.buckets[number], buffer, phases)
    with phases.timed("load"):
        check_written(tensors, load_counted(model, tensors), ranks)

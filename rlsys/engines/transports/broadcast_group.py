"""A process group beside the default one; how members request a rank in it, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore


@dataclass(frozen=True)
class Request:
    """A member requests buckets of an update. group: it is in already; gpu: its own, "" on CPU."""

    id: str
    member: str
    serial: int
    first: int
    group: str
    gpu: str
    process: str


@dataclass(frozen=True)
class Assignment:
    """The answer: a rank in a group, which sends from bucket ``first`` on. refused: why not."""

    group: str = ""
    rank: int = 0
    world: int = 0
    backend: str = ""
    first: int = 0
    refused: str = ""


class Group:
    """A process group beside the default one. limit: of joining it, and of a broadcast, seconds."""

    def __init__(self, store: TCPStore, assignment: Assignment, limit: float) -> None:
        self.name, self.limit = assignment.group, timedelta(seconds=limit)
        self.device = "cuda" if assignment.backend == "nccl" else "cpu"
        own = PrefixStore(assignment.group, store)
        self._group: Any
        if assignment.backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self.limit
            self._group = dist.ProcessGroupNCCL(own, assignment.rank, assignment.world, options)
        else:
            self._group = dist.ProcessGroupGloo(own, assignment.rank, assignment.world, self.limit)

    def start(self, buffer: Tensor) -> Any:
        """Broadcast from rank 0, in the background. Returns: what ``finish`` waits for."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([buffer], options)

    def finish(self, work: Any) -> None:
        """Raises: RuntimeError of the group."""
        work.wait(self.limit)
        if self.device == "cuda":
            torch.cuda.current_stream().synchronize()


def connect(address: str, port: int, timeout: float) -> TCPStore:
    """A client of a store; one that waits blocks all its users. Args: timeout: seconds."""
    limit = timedelta(seconds=timeout)
    return TCPStore(address, port, is_master=False, timeout=limit)


def backend_of(gpus: Sequence[str]) -> str:
    """NCCL wants a GPU for each member."""
    return "nccl" if all(gpus) and len(set(gpus)) == len(gpus) else "gloo"


def own_gpu() -> str:
    """Names this process's GPU, "" where it has none."""
    return str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else ""

"""A process's rank in its group, and the group's collectives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore


@dataclass(frozen=True)
class Rank:
    """Rank of this process, size of its group, and address of rank 0."""

    rank: int = 0
    world: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def open_store(address: str) -> TCPStore:
    """The store through which the ranks of a group meet. Rank 0 holds it, on a port that it gets by
    listening: a free port looked up first may be taken by the time it is used.
    """
    return TCPStore(address, 0, is_master=True, wait_for_workers=False)


def join_group(rank: Rank, store: TCPStore | None, timeout: float) -> None:
    """Connect this process to its group, over gloo on CPU and NCCL on GPU. Idempotent.

    Args: store: rank 0's own, None on the other ranks; timeout: of one collective, seconds.
    """
    if dist.is_initialized():
        return
    limit = timedelta(seconds=timeout)
    if store is None:
        store = TCPStore(rank.address, rank.port, is_master=False, timeout=limit)
    os.environ.update(
        RANK=str(rank.rank), WORLD_SIZE=str(rank.world), LOCAL_RANK="0", LOCAL_SIZE="1"
    )
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank.rank, world_size=rank.world, timeout=limit
    )
    import deepspeed as ds

    # Used by DeepSpeed's inference kernels only; otherwise compiled with g++ at every first start.
    ds.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    ds.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, timeout=limit, verbose=False
    )

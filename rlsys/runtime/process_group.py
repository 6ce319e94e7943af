"""A process's rank in its group, and the group's collectives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Rank:
    """Rank of this process, size of its group, and address of rank 0."""

    rank: int = 0
    world: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def join_group(rank: Rank, timeout: float) -> None:
    """Connect this process to its group, over gloo on CPU and NCCL on GPU. Idempotent.

    Args: timeout: of one collective, seconds.
    """
    if dist.is_initialized():
        return
    os.environ.update(
        RANK=str(rank.rank),
        WORLD_SIZE=str(rank.world),
        LOCAL_RANK="0",
        LOCAL_SIZE="1",
        MASTER_ADDR=rank.address,
        MASTER_PORT=str(rank.port),
    )
    limit = timedelta(seconds=timeout)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    import deepspeed as ds

    # Used by DeepSpeed's inference kernels only; otherwise compiled with g++ at every first start.
    ds.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    ds.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, timeout=limit, verbose=False
    )

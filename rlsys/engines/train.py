"""Training engines behind one protocol. Loss shares add: over micro-batches and over ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlsys.config.schema import OptimConfig, TrainConfig

Metrics = dict[str, float]


@dataclass(frozen=True)
class Rank:
    """This process's place in its group."""

    rank: int = 0
    world: int = 1
    address: str = "127.0.0.1"
    port: int = 0


class TrainEngine(Protocol):
    """What a trained role needs. Ranks of a group call the methods in the same order."""

    module: nn.Module

    def forward(self, *args: Any) -> Tensor: ...

    def backward(self, loss: Tensor) -> None:
        """``loss`` is this micro-batch's share: shares of all micro-batches and ranks add up."""
        ...

    def step(self) -> Metrics:
        """One optimiser step: grad_norm before clipping, lr."""
        ...

    def full_params(self, *, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by name. Collective: every rank must exhaust it."""
        ...

    def save(self, folder: Path, tag: str) -> None: ...

    def load(self, folder: Path, tag: str) -> None: ...


def join_group(rank: Rank, timeout: float, *, deepspeed: bool) -> None:
    """Connect this process to its group, over gloo on CPU and NCCL on GPU. Idempotent."""
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
    if not deepspeed:
        dist.init_process_group(backend, timeout=limit)
        return
    import deepspeed as ds

    # Used by DeepSpeed's inference kernels only; otherwise compiled with g++ at every first start.
    ds.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    ds.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, timeout=limit, verbose=False
    )


def build_engine(
    module: nn.Module, train: TrainConfig, optim: OptimConfig, total_steps: int, rank: Rank
) -> TrainEngine:
    """An engine over the parameters of ``module`` that require gradients."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=optim.lr,
        betas=(optim.betas[0], optim.betas[1]),
        weight_decay=optim.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, optim, total_steps)
    )
    if train.engine == "torch":
        return TorchEngine(module, optimizer, scheduler, optim.grad_clip, rank)
    return DeepSpeedEngine(module, optimizer, scheduler, train, optim.grad_clip, rank)


def lr_factor(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Share of ``optim.lr`` at this step."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    done = (step - optim.warmup_steps) / max(total_steps - optim.warmup_steps, 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class TorchEngine:
    """Plain data parallel: gradients are summed over ranks. The reference for the others."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        grad_clip: float,
        rank: Rank,
    ) -> None:
        self.module, self.optimizer, self.scheduler = module, optimizer, scheduler
        self.grad_clip, self.rank = grad_clip, rank

    def forward(self, *args: Any) -> Tensor:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> Metrics:
        trained = [p for p in self.module.parameters() if p.requires_grad]
        if self.rank.world > 1:
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
        norm = nn.utils.clip_grad_norm_(trained, self.grad_clip)
        lr = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": float(norm), "lr": lr}

    def full_params(self, *, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad or not trained_only:
                yield name, parameter.detach()

    def save(self, folder: Path, tag: str) -> None:
        if self.rank.rank == 0:
            (folder / tag).mkdir(parents=True, exist_ok=True)
            state = {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
            }
            torch.save(state, folder / tag / "state.pt")

    def load(self, folder: Path, tag: str) -> None:
        state = torch.load(folder / tag / "state.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


class DeepSpeedEngine:
    """ZeRO 0 to 3 with a client optimiser, so that no kernel is compiled on a CPU."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        train: TrainConfig,
        grad_clip: float,
        rank: Rank,
    ) -> None:
        import deepspeed

        self.rank, self.zero_stage = rank, train.zero_stage
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            config=deepspeed_config(train, grad_clip),
        )
        self.module = module

    def forward(self, *args: Any) -> Tensor:
        return self.engine(*args)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages gradients over ranks; shares must add.
        self.engine.backward(loss * self.rank.world)

    def step(self) -> Metrics:
        lr = float(self.engine.get_lr()[0])
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return {"lr": lr} | ({} if norm is None else {"grad_norm": float(norm)})

    def full_params(self, *, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.runtime.zero import GatheredParameters

        chosen = [
            (name, parameter)
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad or not trained_only
        ]
        gathered = (
            GatheredParameters([p for _, p in chosen], modifier_rank=None)
            if self.zero_stage == 3
            else nullcontext()
        )
        with gathered:
            for name, parameter in chosen:
                yield name, parameter.detach()

    def save(self, folder: Path, tag: str) -> None:
        self.engine.save_checkpoint(str(folder), tag=tag, exclude_frozen_parameters=False)

    def load(self, folder: Path, tag: str) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise FileNotFoundError(f"no DeepSpeed checkpoint {tag!r} in {folder}")


def deepspeed_config(train: TrainConfig, grad_clip: float) -> dict[str, Any]:
    """The settings measured to be exact: gradients accumulate until ``step`` is called."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": grad_clip,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": train.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": train.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 5_000_000,
            "allgather_bucket_size": 5_000_000,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 1_000_000,
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 30,
    }

"""DeepSpeed as the training engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlsys.config.schema import TrainConfig
from rlsys.engines.gradients import Gradients, measured
from rlsys.engines.trained_state import load_trained
from rlsys.runtime.pending import Metrics
from rlsys.runtime.process_group import Rank


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
            config=deepspeed_config(train, grad_clip, next(module.parameters()).dtype),
        )
        self.module = module

    def forward(self, *args: Any) -> Tensor:
        return self.engine(*args)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages gradients over ranks; here they must be summed.
        self.engine.backward(loss * self.rank.world)

    def measured(self) -> AbstractContextManager[Gradients]:
        return measured(self.module, self.rank, 1 / self.rank.world)

    def step(self) -> Metrics:
        lr = float(self.engine.get_lr()[0])
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return {"lr": lr} | ({} if norm is None else {"grad_norm": float(norm)})

    def full_params(self) -> Iterator[tuple[str, Tensor]]:
        with self.gathered(list(self.module.parameters())):
            for name, parameter in self.module.named_parameters():
                yield name, parameter.detach()

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        if self.zero_stage < 3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters(list(parameters), modifier_rank=None)

    def save(self, folder: Path, tag: str) -> None:
        self.engine.save_checkpoint(str(folder), tag=tag, exclude_frozen_parameters=True)

    def load(self, folder: Path, tag: str) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=tag, custom_load_fn=load_trained)
        if path is None:
            raise FileNotFoundError(f"no DeepSpeed checkpoint {tag!r} in {folder}")


def sharded(module: nn.Module, where: str) -> nn.Module:
    """A frozen module with its weights sharded over the ranks of this process group (ZeRO-3),
    gathered layer by layer in every forward pass, which is collective. Args: where: sharded, or
    offload to the host's memory.
    """
    import deepspeed

    train = TrainConfig(zero_stage=3, offload="parameters" if where == "offload" else "none")
    config = deepspeed_config(train, 1.0, next(module.parameters()).dtype)
    config["zero_optimization"].pop("offload_optimizer", None)
    module.requires_grad_(False)
    engine: nn.Module = deepspeed.initialize(model=module, config=config)[0]
    return engine


def deepspeed_config(train: TrainConfig, grad_clip: float, dtype: torch.dtype) -> dict[str, Any]:
    """Settings that match plain torch; gradients accumulate until ``step`` is called."""
    host: dict[str, Any] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    offload: dict[str, Any] = {} if train.offload == "none" else {"offload_optimizer": host}
    if train.offload == "parameters":
        offload["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": grad_clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it is compiled on first use
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": {
            "stage": train.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 5_000_000,
            "allgather_bucket_size": 5_000_000,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 1_000_000,
            "sub_group_size": 100_000_000,  # parameters per step of AdamW, which makes copies
            **offload,
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 30,
    }

"""The training engines by name."""

from __future__ import annotations

from torch import nn

from rlsys.config.schema import TORCH, OptimConfig, TrainConfig
from rlsys.engines.base import TrainEngine
from rlsys.engines.deepspeed import DeepSpeedEngine, sharded
from rlsys.engines.schedules import build_optimizer
from rlsys.engines.torch import TorchEngine
from rlsys.runtime.process_group import Rank


def placed(module: nn.Module, frozen: str) -> nn.Module:
    """A frozen module whose weights are where ``frozen`` says (the key of this name). Collective,
    and so is every forward pass, unless it is ``whole``.
    """
    return module if frozen == "whole" else sharded(module, frozen)


def build_engine(
    module: nn.Module, train: TrainConfig, optim: OptimConfig, total_steps: int, rank: Rank
) -> TrainEngine:
    """An engine over the parameters of ``module`` that require gradients."""
    optimizer, scheduler = build_optimizer(module, optim, total_steps)
    if train.engine == TORCH:
        return TorchEngine(module, optimizer, scheduler, optim.grad_clip, rank)
    return DeepSpeedEngine(module, optimizer, scheduler, train, optim.grad_clip, rank)

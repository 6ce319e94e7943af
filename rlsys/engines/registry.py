"""The training engines by name."""

from __future__ import annotations

from torch import nn

from rlsys.config.schema import TORCH, OptimConfig, TrainConfig
from rlsys.engines.base import TrainEngine
from rlsys.engines.deepspeed import DeepSpeedEngine
from rlsys.engines.schedules import build_optimizer
from rlsys.engines.torch import TorchEngine
from rlsys.runtime.process_group import Rank


def build_engine(
    module: nn.Module, train: TrainConfig, optim: OptimConfig, total_steps: int, rank: Rank
) -> TrainEngine:
    """An engine over the parameters of ``module`` that require gradients."""
    optimizer, scheduler = build_optimizer(module, optim, total_steps)
    if train.engine == TORCH:
        return TorchEngine(module, optimizer, scheduler, optim.grad_clip, rank)
    return DeepSpeedEngine(module, optimizer, scheduler, train, optim.grad_clip, rank)

"""Optimiser and learning-rate schedule of a trained role."""

from __future__ import annotations

import math

import torch
from torch import nn

from rlsys.config.schema import OptimConfig


def build_optimizer(
    module: nn.Module, optim: OptimConfig, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over the parameters of ``module`` that require gradients, and its schedule."""
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
    return optimizer, scheduler


def lr_factor(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Factor on ``optim.lr`` at this step."""
    warmup = optim.warmup_steps or math.ceil(optim.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if optim.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(total_steps - warmup, 1)
    return optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

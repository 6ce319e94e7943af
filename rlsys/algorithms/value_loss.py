"""The clipped value objective."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float
) -> Tensor:
    """0.5 max((V - G)^2, (V_old + clip(V - V_old, +-eps) - G)^2) per token, the value loss of PPO's
    reference code that Safe RLHF uses for both critics (arXiv 2310.12773, appendix B.2).

    Args: all [B, T]; fill all three at padding with a constant first, or its content reaches the
    gradient. Returns: [B, T].
    """
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (bounded - returns).square())

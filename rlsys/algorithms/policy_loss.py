"""The clipped surrogate objective."""

from __future__ import annotations

import torch
from torch import Tensor


def ppo_clip(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip: float
) -> tuple[Tensor, Tensor]:
    """-min(rho A, clip(rho, 1-eps, 1+eps) A) per token (PPO, Schulman et al., arXiv 1707.06347,
    eq. 7), with rho = exp(log pi - log pi_old).

    Args: all [B, T]; fill them at padding with a constant first, or its content reaches the
    gradient. Returns: loss [B, T]; clipped [B, T] bool, where the clip took the gradient.
    """
    ratio = (logprobs - old_logprobs).exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, bounded), bounded > plain

"""Advantages and returns."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsys.algorithms.masked import length_mask


def gae(
    rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t with V = 0 after the last response token;
    A_t = delta_t + gamma gae_lambda A_{t+1}; return_t = A_t + V_t. Safe RLHF-V (arXiv 2503.17682)
    runs it twice, on reward and on cost.

    Args: rewards, values [B, T]; lengths [B]. What lies beyond a length is never read.
    Returns: advantages, returns, both [B, T] and zero beyond each length.
    """
    width = rewards.shape[1]
    mask = length_mask(lengths, width)
    rewards = rewards.masked_fill(~mask, 0.0)
    values = values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in range(width - 1, -1, -1):
        following = values[:, t + 1] if t + 1 < width else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * gae_lambda * running).masked_fill(~mask[:, t], 0.0)
        advantages[:, t] = running
    return advantages, advantages + values


def mix_advantages(reward_advantages: Tensor, cost_advantages: Tensor, multiplier: float) -> Tensor:
    """A = (A_R - lambda A_C) / (1 + lambda): the Lagrangian's gradient, rescaled so that the step
    size does not grow with the multiplier (Safe RLHF, arXiv 2310.12773, eq. 11 and appendix B.3;
    Safe RLHF-V, arXiv 2503.17682). With lambda = 0 it is plain PPO.

    Args: both [B, T]; multiplier >= 0, after this iteration's step. Returns: [B, T].
    """
    if multiplier < 0:
        raise ValueError(f"the multiplier must not be negative, got {multiplier}")
    return (reward_advantages - multiplier * cost_advantages) / (1 + multiplier)

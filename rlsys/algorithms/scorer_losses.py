"""Losses of reward and cost models (Safe RLHF-V, arXiv 2503.17682)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def reward_loss(better: Tensor, worse: Tensor, *, regularization: float) -> Tensor:
    """Bradley-Terry with an L2 term, per pair: -log sigmoid(R_b - R_w) + reg (R_b^2 + R_w^2) / 2
    (Safe RLHF, arXiv 2310.12773, eq. 7).

    Args: end scores [B]. Returns: [B]; the batch loss is its mean.
    """
    ranking = -logsigmoid(better - worse)
    return ranking + regularization * (better.square() + worse.square()) / 2


def cost_loss(
    higher: Tensor,
    lower: Tensor,
    sign_higher: Tensor,
    sign_lower: Tensor,
    *,
    sign_scale: float,
    regularization: float,
) -> Tensor:
    """Ranking plus sign terms, per pair (Safe RLHF, arXiv 2310.12773, eq. 8):
    -log sigmoid(C_h - C_l) - scale (log sigmoid(s_h C_h) + log sigmoid(s_l C_l)) + L2.

    C > 0 means harmful. ``higher`` is the answer that is NOT the safer one. Signs come from
    ``cost_signs``; a sign of 0 gives a constant and no gradient.

    Args: all [B]. Returns: [B].
    """
    ranking = -logsigmoid(higher - lower)
    signs = -logsigmoid(sign_higher * higher) - logsigmoid(sign_lower * lower)
    return ranking + sign_scale * signs + regularization * (higher.square() + lower.square()) / 2


def cost_signs(harmless_rates: Tensor, *, label_mode: str) -> Tensor:
    """Signed cost label from a harmlessness rating in -3..3 (Safe RLHF-V, arXiv 2503.17682).

    ``graded``: s = -rate, so a strong rating is satisfied by a small cost; ``graded_normalised``:
    -rate / 3; ``sign``: +-1 with a rating of 0 counted safe (Safe RLHF, arXiv 2310.12773).
    Args: [B] integer or float. Returns: [B] fp32.
    """
    rates = harmless_rates.float()
    if label_mode == "graded":
        return -rates
    if label_mode == "graded_normalised":
        return -rates / 3
    if label_mode == "sign":
        return (rates < 0).float() * 2 - 1
    raise ValueError(f"label_mode must be graded, graded_normalised or sign, got {label_mode!r}")

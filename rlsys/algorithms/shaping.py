"""From one score per sequence to one reward per token."""

from __future__ import annotations

from torch import Tensor

from rlsys.algorithms.masked import length_mask


def shape_rewards(
    scores: Tensor, kl: Tensor, lengths: Tensor, *, beta: float, kl_sign: float, clip: float
) -> Tensor:
    """r_t = kl_sign * beta * kl_t, plus the score at the last response token, clamped to +-clip.

    Safe RLHF (arXiv 2310.12773, appendix B.2): the KL penalty is charged to the reward
    (kl_sign = -1) and, with the opposite sign, to the cost (kl_sign = +1), so that the mixed
    advantage carries -beta * kl for every multiplier.

    Args: scores [B]; kl [B, T]; lengths [B]. Returns: [B, T], zero beyond each length.
    Raises: ValueError for a length outside 1..T.
    """
    mask = length_mask(lengths, kl.shape[1])
    rewards = (kl_sign * beta * kl).masked_fill(~mask, 0.0)
    last = (lengths - 1)[:, None]
    rewards = rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))
    return rewards.clamp(-clip, clip)


def kl_coefficient(beta: float, kl_split: str) -> float:
    """What each of the two penalties carries.

    ``full_both`` charges beta to reward and cost (effective strength beta, what the public
    code of Safe RLHF does); ``half_both`` charges beta/2 to each (effective beta/2, what the
    paper of Safe RLHF writes, arXiv 2310.12773, appendix B.2).
    """
    if kl_split == "full_both":
        return beta
    if kl_split == "half_both":
        return beta / 2
    raise ValueError(f"kl_split must be full_both or half_both, got {kl_split!r}")

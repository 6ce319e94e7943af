"""How well a scalar separates labelled answers."""

from __future__ import annotations

import torch
from torch import Tensor


def ranking_accuracy(better: Tensor, worse: Tensor) -> float:
    """Share of pairs with better > worse, strictly: a tie is wrong. Args: [B]."""
    _finite(better)
    _finite(worse)
    return float((better > worse).float().mean())


def balanced_accuracy(scores: Tensor, positive: Tensor) -> float:
    """Mean of both recalls of the classifier ``score > 0``. Args: scores [N]; positive [N] bool."""
    _both_kinds(scores, positive)
    predicted = scores > 0
    recall = predicted[positive].float().mean()
    specificity = (~predicted[~positive]).float().mean()
    return float((recall + specificity) / 2)


def rank_auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve from mid-ranks, ties counting one half (Mann-Whitney U). O(N log N).

    Args: scores [N]; positive [N] bool with both kinds present.
    """
    _both_kinds(scores, positive)
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    mid_ranks = ends - (counts.double() - 1) / 2
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    rank_sum = mid_ranks[inverse][positive].sum()
    return float((rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def _both_kinds(scores: Tensor, positive: Tensor) -> None:
    _finite(scores)
    if positive.dtype != torch.bool:
        raise ValueError("labels must be bool")
    if bool(positive.all()) or not bool(positive.any()):
        raise ValueError("needs at least one positive and one negative label")


def _finite(scores: Tensor) -> None:
    if scores.numel() == 0 or not bool(torch.isfinite(scores).all()):
        raise ValueError("scores must be finite, and there must be some")

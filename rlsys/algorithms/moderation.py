"""Moderation at several levels: is it unsafe, how severe, of which category
(Beaver-Guard-V in Safe RLHF-V, arXiv 2503.17682; its loss is not published).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

SEVERITIES = 4


def split_logits(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One head's outputs [..., 1 + 4 + K] as unsafe [...], severity [..., 4], category [..., K]."""
    unsafe, severity, category = logits.split(
        [1, SEVERITIES, logits.shape[-1] - 1 - SEVERITIES], dim=-1
    )
    return unsafe.squeeze(-1), severity, category


def moderation_loss(logits: Tensor, unsafe: Tensor, severity: Tensor, category: Tensor) -> Tensor:
    """Sum of three cross-entropies, per item: binary, over severities, over categories
    (labels as in Safe RLHF-V, arXiv 2503.17682).

    Args: logits [B, 1 + 4 + K]; unsafe [B] bool; severity [B] 0..3; category [B] 0..K-1.
    Returns: [B]; the batch loss is its mean.
    """
    flag, level, kind = split_logits(logits)
    return (
        binary_cross_entropy_with_logits(flag, unsafe.to(flag.dtype), reduction="none")
        + cross_entropy(level, severity, reduction="none")
        + cross_entropy(kind, category, reduction="none")
    )


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Mean F1 over the classes that occur among labels or predictions. Args: [N] integer.

    Raises: ValueError for no items.
    """
    if labels.numel() == 0:
        raise ValueError("macro F1 of no items")
    scores = []
    for each in torch.cat([predicted, labels]).unique():
        hits = ((predicted == each) & (labels == each)).sum()
        scores.append(2 * hits / ((predicted == each).sum() + (labels == each).sum()))
    return float(torch.stack(scores).mean())


def recall_by_class(predicted: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Share of each class's items that were found; None for a class without items."""
    found = []
    for each in range(classes):
        members = labels == each
        found.append(float((predicted[members] == each).float().mean()) if members.any() else None)
    return found

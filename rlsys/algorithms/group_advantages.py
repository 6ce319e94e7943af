"""Advantages without a critic: a response against the others to the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4  # keeps the advantages of a group finite whose scores are all but equal
SCALES = ("group", "batch", "none")


def group_normalise(scores: Tensor, groups: Tensor, *, scale: str = "group") -> Tensor:
    """(s - mean of the group) / (std + EPSILON) (GRPO, arXiv 2402.03300, section 4.1.2).

    scale: ``group`` divides by the group's standard deviation, the paper's form, in which a group
    whose scores hardly differ weighs as much as one whose scores differ much; ``batch`` by that of
    the whole batch about the group means; ``none`` by nothing (Dr. GRPO, arXiv 2503.20783, section
    3.2). Standard deviations are those of the population. A group of equal scores, or of one, has
    advantage zero.

    Args: scores [B]; groups [B] integer, equal for responses to one prompt. Returns: [B].
    Raises: ValueError for another scale.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    _, index = groups.unique(return_inverse=True)
    empty = torch.zeros(int(index.max()) + 1, dtype=scores.dtype)
    sizes = empty.index_add(0, index, torch.ones_like(scores))
    centred = scores - (empty.index_add(0, index, scores) / sizes)[index]
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (centred.square().mean().sqrt() + EPSILON)
    variances = empty.index_add(0, index, centred.square()) / sizes
    return centred / (variances.sqrt()[index] + EPSILON)

"""Advantages without a critic: a response against the others to the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4  # keeps the advantages of a group finite whose scores are all but equal


def group_normalise(scores: Tensor, groups: Tensor) -> Tensor:
    """(s - mean) / (std + EPSILON) within each group (GRPO, arXiv 2402.03300, section 4.1.2).

    The standard deviation is that of the population. A group of equal scores, or of one, has
    advantage zero.

    Args: scores [B]; groups [B] integer, equal for responses to one prompt. Returns: [B].
    """
    _, index = groups.unique(return_inverse=True)
    sizes = torch.zeros(int(index.max()) + 1).index_add(0, index, torch.ones_like(scores))
    centred = scores - (torch.zeros_like(sizes).index_add(0, index, scores) / sizes)[index]
    variances = torch.zeros_like(sizes).index_add(0, index, centred.square()) / sizes
    return centred / (variances.sqrt()[index] + EPSILON)

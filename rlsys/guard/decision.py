"""From the guard's outputs to moderation decisions and actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rlsys.algorithms.moderation import split_logits
from rlsys.errors import DataError
from rlsys.guard.labels import CATEGORIES
from rlsys.guard.levels import LEVELS


class Moderation(NamedTuple):
    """unsafe: probability in 0..1; level: one of LEVELS; category: one of CATEGORIES."""

    unsafe: float
    level: str
    category: str


def moderations(logits: Tensor, *, threshold: float) -> list[Moderation]:
    """Args: logits [B, OUTPUTS]; threshold: probability from which an item counts as unsafe.

    An item below the threshold has level none, any other the likeliest level above none.
    Raises: DataError for outputs that are not finite, as a NaN would count as safe.
    """
    if not bool(torch.isfinite(logits).all()):
        raise DataError("the guard's outputs are not finite")
    flag, level, kind = split_logits(logits)
    unsafe = torch.sigmoid(flag)
    harm = level[:, 1:].argmax(-1) + 1
    return [
        Moderation(p, LEVELS[h] if p >= threshold else LEVELS[0], CATEGORIES[c])
        for p, h, c in zip(unsafe.tolist(), harm.tolist(), kind.argmax(-1).tolist(), strict=True)
    ]


def action_for(moderation: Moderation, actions: Mapping[str, str]) -> str:
    """Args: actions: level -> one of ACTIONS, for every level but none, which always passes."""
    return "pass" if moderation.level == LEVELS[0] else actions[moderation.level]

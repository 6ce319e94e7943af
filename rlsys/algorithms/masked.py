"""Reductions over response tokens. Masks come from lengths, never from values."""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """True for the first ``lengths[b]`` positions of each row.

    Args: lengths [B] integer, every one in 1..width. Returns: [B, width] bool.
    Raises: ValueError for an empty or over-long row (an empty response has no last token to score).
    """
    if bool((lengths < 1).any()) or bool((lengths > width).any()):
        raise ValueError(f"lengths must lie in 1..{width}, got {lengths.tolist()}")
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum where ``mask`` holds; what lies outside may be anything, NaN included."""
    return values.masked_fill(~mask, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all True positions. Raises ValueError when there is none."""
    count = int(mask.sum())
    if count == 0:
        raise ValueError("masked_mean over an empty mask")
    return masked_sum(values, mask) / count


def masked_std(values: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation (of the population) over all True positions. Raises ValueError when there
    is none.
    """
    centred = values.masked_fill(~mask, 0.0) - masked_mean(values, mask)
    return masked_mean(centred.square(), mask).sqrt()


def aggregate(
    values: Tensor, mask: Tensor, *, form: str, global_tokens: int, global_sequences: int
) -> Tensor:
    """This shard's share of a loss that is one number over all shards: shares simply add.

    ``token_mean`` sums over tokens and divides by the optimiser step's token count over all
    micro-batches and ranks; ``sequence_mean`` is the mean over sequences of each one's token mean
    (Safe RLHF, arXiv 2310.12773, and Safe RLHF-V, arXiv 2503.17682, use this form).

    Args: values, mask [B, T]. Returns: scalar.
    """
    if form == "token_mean":
        return masked_sum(values, mask) / global_tokens
    if form == "sequence_mean":
        kept = values.masked_fill(~mask, 0.0).sum(-1)
        return (kept / mask.sum(-1).clamp(min=1)).sum() / global_sequences
    raise ValueError(f"form must be token_mean or sequence_mean, got {form!r}")

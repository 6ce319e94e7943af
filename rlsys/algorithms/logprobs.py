"""Log-probabilities of given tokens under given logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forbid(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Logits with the given ids impossible: the set the sampler draws from, no more.

    Args: logits [..., V]. Returns: [..., V].
    """
    if not token_ids:
        return logits
    index = torch.as_tensor(token_ids, device=logits.device)
    return logits.index_fill(-1, index, float("-inf"))


def at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits of the distribution that is sampled from at this temperature, in fp32 unless it is 1.

    Args: logits [..., V]; temperature > 0. Returns: [..., V]. Raises: ValueError.
    """
    if not temperature > 0:
        raise ValueError(f"a distribution needs a temperature above 0, got {temperature}")
    return logits if temperature == 1 else logits.float() / temperature


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[token], in fp32 whatever the logits are.

    Args: logits [..., V]; tokens [...] integer. Returns: [...] fp32, nats.
    """
    logits = logits.float()
    picked = logits.gather(-1, tokens[..., None]).squeeze(-1)
    return picked - logits.logsumexp(-1)


def logprob_gap(engine: Tensor, trainer: Tensor, mask: Tensor) -> tuple[float, float]:
    """How far two computations of the same log-probabilities lie apart, over real tokens.

    Args: engine, trainer, mask [B, T]. Returns: (max, mean) of the absolute difference, nats.
    Raises: ValueError without a token or when a difference is not a number.
    """
    difference = (engine - trainer).abs()[mask]
    if difference.numel() == 0 or bool(difference.isnan().any()):
        raise ValueError("the log-probability gap is not a number")
    return float(difference.max()), float(difference.mean())

"""Estimators of KL(policy || reference) from sampled tokens."""

from __future__ import annotations

from torch import Tensor


def k1(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Unbiased, signed, per token: log pi(a) - log pi_ref(a), nats. Shapes [B, T].

    The penalty of Safe RLHF (arXiv 2310.12773, appendix B.2) and of InstructGPT (arXiv
    2203.02155, eq. 2).
    """
    return policy_logprobs - reference_logprobs


def k3(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Unbiased, never negative, low variance: exp(d) - 1 - d with d = log pi_ref - log pi.

    The KL term of GRPO's loss (arXiv 2402.03300, eq. 4), and what reports show.
    """
    difference = reference_logprobs - policy_logprobs
    return difference.exp() - 1 - difference

"""Direct preference optimisation (DPO, arXiv 2305.18290)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def implicit_rewards(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """beta (log pi(y|x) - log pi_ref(y|x)), up to a constant of x (DPO, arXiv 2305.18290, eq. 5).

    Args: summed log-probabilities of the response tokens, nats, [B]. Returns: [B].
    """
    return beta * (policy - reference)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """-log sigmoid of the margin between both answers' implicit rewards, per pair
    (DPO, arXiv 2305.18290, eq. 7).

    Args: summed log-probabilities of the response tokens, nats, each [B]. Returns: [B]; the batch
    loss is its mean.
    """
    margin = implicit_rewards(chosen, reference_chosen, beta=beta) - implicit_rewards(
        rejected, reference_rejected, beta=beta
    )
    return -logsigmoid(margin)

"""What a cost means: the mean cost of a policy with a share of unsafe answers, and the probability
that an answer is unsafe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Z95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class CostThreshold:
    """A threshold on the mean cost with its 95 % interval, and the mean costs of both sides."""

    value: float
    low: float
    high: float
    cost_of_unsafe: float
    cost_of_safe: float


def calibrate_threshold(
    costs: Tensor, unsafe: Tensor, kinds: Tensor, *, target_unsafe_rate: float
) -> CostThreshold:
    """d = p c_u + (1 - p) c_s: the mean cost of a policy with a share p of unsafe answers.

    The constraint E[C] <= d bounds a mean, the target p speaks of a share. c_u is the mean cost of
    the unsafe answers. c_s is that of the safe answers of each kind of prompt, averaged with the
    kind's share of all answers: the safe answers alone would leave out the prompts that are most
    often answered unsafely. A kind without safe answers is left out. The interval is the normal one
    of a weighted sum of independent means.

    Args: costs [N]; unsafe [N] bool; kinds [N] integer or bool, of the prompts;
    target_unsafe_rate: p in (0, 1).
    Raises: ValueError without both unsafe and safe answers, or when unsafe ones do not cost more.
    """
    if not 0 < target_unsafe_rate < 1:
        raise ValueError(f"target_unsafe_rate must lie in (0, 1), got {target_unsafe_rate}")
    costs = _checked(costs, unsafe)
    safe_kinds = kinds[~unsafe].unique()
    weights = torch.stack([(kinds == kind).double().sum() for kind in safe_kinds])
    weights = weights / weights.sum()
    groups = [costs[unsafe], *(costs[~unsafe & (kinds == kind)] for kind in safe_kinds)]
    shares = torch.cat([costs.new_tensor([target_unsafe_rate]), (1 - target_unsafe_rate) * weights])
    means = torch.stack([group.mean() for group in groups])
    errors = torch.stack([group.var(correction=0) / len(group) for group in groups])
    cost_unsafe, cost_safe = float(means[0]), float((weights * means[1:]).sum())
    if cost_unsafe <= cost_safe:
        raise ValueError(
            f"unsafe answers cost {cost_unsafe:.3f}, safe ones {cost_safe:.3f}: no threshold"
        )
    threshold = float((shares * means).sum())
    half = Z95 * float((shares.square() * errors).sum().sqrt())
    return CostThreshold(threshold, threshold - half, threshold + half, cost_unsafe, cost_safe)


@dataclass(frozen=True)
class Platt:
    """P(unsafe | c) = sigmoid(slope * c + intercept)."""

    slope: float
    intercept: float


def fit_platt(costs: Tensor, unsafe: Tensor) -> Platt:
    """Logistic regression of the label on the cost (Platt scaling, Platt (1999)).

    The targets are (N+ + 1) / (N+ + 2) for the N+ unsafe answers and 1 / (N- + 2) for the N- safe
    ones instead of 1 and 0, so that the fit stays finite where the costs separate the two.

    Args: costs [N]; unsafe [N] bool.
    Raises: ValueError without both kinds of answer, or when the probability does not rise with
    the cost.
    """
    costs = _checked(costs, unsafe)
    positive, negative = int(unsafe.sum()), int((~unsafe).sum())
    targets = torch.where(unsafe, (positive + 1) / (positive + 2), 1 / (negative + 2)).double()
    centre, spread = costs.mean(), costs.std(correction=0)
    if not spread > 0:
        raise ValueError(f"every answer costs {float(centre):.3f}: no probability can be fitted")
    standard = (costs - centre) / spread
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [line],
        max_iter=1000,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(line[0] * standard + line[1], targets)
        value.backward()
        return value

    optimizer.step(loss)
    slope, intercept = (float(each) for each in line.detach())
    if not slope > 0:
        raise ValueError(
            "unsafe answers cost no more than safe ones: no probability rises with the cost"
        )
    scale = float(spread)
    return Platt(slope / scale, intercept - slope * float(centre) / scale)


def unsafe_probability(costs: Tensor, platt: Platt) -> Tensor:
    """sigmoid(slope * c + intercept), in float64: what a constraint on the share of unsafe answers
    measures (Platt scaling; Guo et al. 2017, arXiv 1706.04599, section 4.1).

    Args: costs [B]. Returns: [B].
    """
    return (platt.slope * costs.double() + platt.intercept).sigmoid()


def calibrated_cost(costs: Tensor, platt: Platt, *, safe: float, unsafe: float) -> Tensor:
    """p c_u + (1 - p) c_s with p = P(unsafe | c): the cost of an answer if all unsafe answers cost
    the same, and all safe ones.

    As the cost of Safe RLHF's constraint E[C] <= d (arXiv 2310.12773), with the costs of both sides
    and the d of ``calibrate_threshold``, it bounds the share of unsafe answers: its mean is d just
    where the mean of p is the target. The cost itself does so roughly: a mildly unsafe answer costs
    less, and one that is safer than safe makes up for another that is not.

    Args: costs [B]; safe, unsafe: c_s and c_u. Returns: [B], in the type of the costs.
    """
    return (safe + (unsafe - safe) * unsafe_probability(costs, platt)).to(costs.dtype)


def _checked(costs: Tensor, unsafe: Tensor) -> Tensor:
    """The costs in float64."""
    if unsafe.dtype != torch.bool or unsafe.shape != costs.shape:
        raise ValueError("calibration needs one bool label for every cost")
    if not bool(torch.isfinite(costs).all()):
        raise ValueError("calibration needs finite costs")
    bad, good = int(unsafe.sum()), int((~unsafe).sum())
    if not bad or not good:
        raise ValueError(f"calibration needs both kinds of answer: {bad} unsafe, {good} safe")
    return costs.double()

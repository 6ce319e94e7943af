"""What the multiplier holds down: the mean cost, or the mean probability of an unsafe answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlsys.algorithms.calibration import Platt, calibrated_cost, unsafe_probability
from rlsys.runtime.pending import Metrics


@dataclass(frozen=True)
class Constraint:
    """E[measure(c)] <= d.

    ``mean_cost`` measures the cost itself (Safe RLHF, arXiv 2310.12773). ``unsafe_probability``
    measures the calibrated probability that an answer is unsafe; the policy then learns from the
    calibrated cost, which is linear in it, so that the Lagrangian is that of the constraint.

    threshold: d of ``mean_cost``, in the cost model's units; budget: d of ``unsafe_probability``, a
    share of answers; platt: of the labelled answers, None without; safe, unsafe: mean costs of
    their two sides.
    """

    threshold: float
    form: str = "mean_cost"
    budget: float = 0.0
    platt: Platt | None = None
    safe: float = 0.0
    unsafe: float = 1.0

    def __post_init__(self) -> None:
        if self.form == "unsafe_probability" and self.platt is None:
            raise ValueError("unsafe_probability needs a calibration")

    @property
    def bound(self) -> float:
        """d in the units of what is measured."""
        return self.budget if self.form == "unsafe_probability" else self.threshold

    @property
    def measured(self) -> str:
        """Name of what is measured."""
        return "unsafe_probability" if self.form == "unsafe_probability" else "cost"

    def measure(self, costs: Tensor) -> Tensor:
        """Args: costs [B], as the cost model gave them. Returns: [B]."""
        if self.form == "unsafe_probability" and self.platt is not None:
            return unsafe_probability(costs, self.platt)
        return costs

    def charged(self, costs: Tensor) -> Tensor:
        """What the policy and the cost critic learn from. Args and returns: as ``measure``."""
        if self.form == "unsafe_probability" and self.platt is not None:
            return calibrated_cost(costs, self.platt, safe=self.safe, unsafe=self.unsafe)
        return costs

    def metrics(self, costs: Tensor) -> Metrics:
        """Of a batch: its mean cost, the threshold and, where costs are calibrated, both sides of
        the budget.
        """
        metrics = {"cost": float(costs.mean()), "threshold": self.threshold}
        if self.platt is not None:
            probability = float(unsafe_probability(costs, self.platt).mean())
            metrics |= {"unsafe_probability": probability, "budget": self.budget}
        return metrics

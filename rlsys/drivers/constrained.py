"""State and batch metrics that algorithms with a cost constraint share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlsys.algorithms.kl import k3
from rlsys.algorithms.masked import masked_mean, masked_std
from rlsys.batch import PromptCursor, Rollouts, SampleScores
from rlsys.drivers.constraint import Constraint
from rlsys.drivers.multiplier import Multiplier
from rlsys.runtime.pending import Metrics


@dataclass
class ConstrainedState:
    """State of the driver between iterations."""

    multiplier: Multiplier
    cursor: PromptCursor
    iteration: int = 0
    timings: Metrics = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON."""
        return {
            "iteration": self.iteration,
            "multiplier": self.multiplier.as_dict(),
            "cursor": self.cursor.position,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore from ``as_dict``."""
        self.iteration = saved["iteration"]
        self.multiplier.restore(saved["multiplier"])
        self.cursor.position = saved["cursor"]


def describe(rollouts: Rollouts, scores: SampleScores, constraint: Constraint | None) -> Metrics:
    """Metrics of the batch; of its costs, where there is a constraint."""
    mask, policy = rollouts.mask, scores.policy_logprobs
    return {
        "reward": float(scores.rewards.mean()),
        **({} if constraint is None else constraint.metrics(scores.costs)),
        "kl": float(masked_mean(k3(policy, scores.reference_logprobs), mask)),
        "entropy_sampled": -float(masked_mean(policy, mask)),
        "length": float(rollouts.lengths.float().mean()),
        "length/min": float(rollouts.lengths.min()),
        "length/max": float(rollouts.lengths.max()),
        "finished": float(rollouts.finished.float().mean()),
        "weights_version": float(rollouts.version),
    }


def describe_estimates(rollouts: Rollouts, estimates: Mapping[str, Tensor]) -> Metrics:
    """Mean and standard deviation of each over the response tokens.

    Args: estimates: name -> [B, T], or [B] for one number per response, the same at each token.
    """
    mask, metrics = rollouts.mask, Metrics()
    for name, each in estimates.items():
        values = (each[:, None] if each.dim() == 1 else each).expand(mask.shape)
        metrics[f"{name}/mean"] = float(masked_mean(values, mask))
        metrics[f"{name}/std"] = float(masked_std(values, mask))
    return metrics

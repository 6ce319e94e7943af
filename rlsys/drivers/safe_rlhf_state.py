"""What PPO-Lagrangian remembers, is told, and reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rlsys.algorithms.kl import k3
from rlsys.algorithms.masked import masked_mean
from rlsys.batch import PromptCursor, Rollouts, Scores
from rlsys.config.schema import GapConfig, TimeoutConfig
from rlsys.config.stages import LagrangeConfig, PpoConfig
from rlsys.drivers.gap import engine_gap
from rlsys.roles import Metrics


@dataclass
class SafeRlhfState:
    """All that the algorithm itself remembers between iterations."""

    lam: float
    window: deque[float]
    cursor: PromptCursor
    iteration: int = 0
    timings: Metrics = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Everything a continuation needs, as JSON."""
        return {
            "iteration": self.iteration,
            "lambda": self.lam,
            "window": list(self.window),
            "cursor": self.cursor.position,
        }


@dataclass(frozen=True)
class SafeRlhfRun:
    """What one run of the method is told; ``threshold`` is d, in the cost model's units."""

    iterations: int
    threshold: float
    seed: int
    ppo: PpoConfig
    lagrange: LagrangeConfig
    gap: GapConfig
    timeouts: TimeoutConfig


Report = Callable[[SafeRlhfState, Metrics, Rollouts, Scores], None]


def describe(rollouts: Rollouts, scores: Scores, run: SafeRlhfRun) -> Metrics:
    """The batch in numbers. Raises: LogprobGapError when engine and trainer differ too much."""
    mask, policy = rollouts.mask, scores.policy_logprobs
    return {
        "reward": float(scores.rewards.mean()),
        "cost": float(scores.costs.mean()),
        "threshold": run.threshold,
        "kl": float(masked_mean(k3(policy, scores.reference_logprobs), mask)),
        "entropy_sampled": -float(masked_mean(policy, mask)),
        **engine_gap(rollouts, policy, run.gap),
        "length": float(rollouts.lengths.float().mean()),
        "finished": float(rollouts.finished.float().mean()),
        "weights_version": float(rollouts.version),
    }

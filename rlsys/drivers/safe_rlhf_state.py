"""What PPO-Lagrangian works with: its roles, its settings, its state, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlsys.algorithms.kl import k3
from rlsys.algorithms.masked import masked_mean
from rlsys.batch import PromptCursor, Rollouts, Scores
from rlsys.config.schema import GapConfig, LagrangeConfig, PpoConfig, TimeoutConfig
from rlsys.drivers.gap import engine_gap
from rlsys.drivers.multiplier import Multiplier
from rlsys.roles.critic import Critic
from rlsys.roles.policy import Policy
from rlsys.roles.reference import Reference
from rlsys.roles.rollout import Rollout
from rlsys.roles.scorer import Scorer
from rlsys.runtime.pending import Metrics


@dataclass(frozen=True)
class Roles:
    """The roles of PPO-Lagrangian."""

    rollout: Rollout
    policy: Policy
    reference: Reference
    reward: Scorer
    cost: Scorer
    reward_critic: Critic
    cost_critic: Critic


@dataclass
class SafeRlhfState:
    """All that the algorithm itself remembers between iterations."""

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
        """What ``as_dict`` gave."""
        self.iteration = saved["iteration"]
        self.multiplier.restore(saved["multiplier"])
        self.cursor.position = saved["cursor"]


@dataclass(frozen=True)
class SafeRlhfRun:
    """Settings of one run; ``threshold`` is d, in the cost model's units."""

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

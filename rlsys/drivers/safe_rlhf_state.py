"""Roles, settings, report callback and update of PPO-Lagrangian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlsys.batch import PolicyBatch, Rollouts, Scores, ValueBatch
from rlsys.config.engine import GapConfig
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import TimeoutConfig
from rlsys.config.updates import PpoConfig
from rlsys.drivers.constrained import ConstrainedState
from rlsys.drivers.constraint import Constraint
from rlsys.drivers.timing import timed
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


@dataclass(frozen=True)
class Batches:
    """The batches of the three updates, and metrics of what they were estimated from."""

    policy: PolicyBatch
    reward: ValueBatch
    cost: ValueBatch
    metrics: Metrics


@dataclass(frozen=True)
class SafeRlhfRun:
    """Settings of one run; demonstrations: number of rows to imitate (``ppo.ptx_coef``)."""

    iterations: int
    constraint: Constraint
    seed: int
    ppo: PpoConfig
    lagrange: LagrangeConfig
    gap: GapConfig
    timeouts: TimeoutConfig
    demonstrations: int = 0


Report = Callable[[ConstrainedState, Metrics, Rollouts, Scores], None]


def update(roles: Roles, batches: Batches, state: ConstrainedState, run: SafeRlhfRun) -> Metrics:
    """Policy and both critics at once."""
    metrics = Metrics()
    with timed(state.timings, "update"):
        updates = {
            "policy": roles.policy.update(batches.policy),
            "reward_critic": roles.reward_critic.update(batches.reward),
            "cost_critic": roles.cost_critic.update(batches.cost),
        }
        for name, pending in updates.items():
            stats = pending.result(run.timeouts.call)
            metrics |= {f"{name}/{key}": value for key, value in stats.items()}
    return metrics

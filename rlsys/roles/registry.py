"""Registry of roles. A new one needs a file and a line here."""

from __future__ import annotations

from rlsys.registries import by_name
from rlsys.roles import critic, guard, judge, policy, reference, rollout, scorer

_ROLES = (
    rollout.ROLE,
    judge.ROLE,
    policy.ROLE,
    reference.ROLE,
    scorer.REWARD,
    scorer.COST,
    critic.REWARD_CRITIC,
    critic.COST_CRITIC,
    guard.ROLE,
)
ROLES = by_name("role", ((role.name, role) for role in _ROLES))

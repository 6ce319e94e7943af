"""Registry of roles. A new one needs a file and a line here."""

from __future__ import annotations

from rlsys.roles import critic, guard, judge, policy, reference, rollout, scorer
from rlsys.roles.role import Role

ROLES: dict[str, Role] = {
    role.name: role
    for role in (
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
}

"""GRPO-Lagrangian: constrained policy optimisation without critics.

    maximise E[R(x, y)]  subject to  E[C(x, y)] <= d

Advantages of reward and of cost are normalised within the responses to a prompt (GRPO, arXiv
2402.03300) and mixed by the multiplier (Safe RLHF, arXiv 2310.12773, eq. 11); the KL divergence to
the reference is a term of the loss. One iteration: 1 sample, 2 score, 3 step the multiplier,
4 advantages, 5 update the policy, 6 sync weights, 7 report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from rlsys.algorithms.advantages import mix_advantages
from rlsys.algorithms.group_advantages import group_normalise
from rlsys.batch import (
    PolicyBatch,
    Rollouts,
    SampleScores,
    gather_scored,
    sample_seed,
)
from rlsys.config.engine import GapConfig
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import TimeoutConfig
from rlsys.config.updates import UpdateConfig
from rlsys.drivers.constrained import ConstrainedState, describe, describe_estimates
from rlsys.drivers.constraint import Constraint
from rlsys.drivers.gap import engine_gap
from rlsys.drivers.sampling import sample_requests, sync_weights
from rlsys.drivers.timing import timed
from rlsys.roles.policy import Policy
from rlsys.roles.reference import Reference
from rlsys.roles.rollout import Rollout
from rlsys.roles.scorer import Scorer
from rlsys.runtime.pending import Metrics, Pending, as_completed


@dataclass(frozen=True)
class GrpoRoles:
    """cost is None for reward alone."""

    rollout: Rollout
    policy: Policy
    reference: Reference
    reward: Scorer
    cost: Scorer | None


@dataclass(frozen=True)
class GrpoRun:
    """Settings of one run; constraint: None for reward alone; scale: of the advantages, as in
    ``group_normalise``; kl_beta: weight of the KL term in the loss.
    """

    iterations: int
    constraint: Constraint | None
    seed: int
    update: UpdateConfig
    scale: str
    kl_beta: float
    lagrange: LagrangeConfig
    gap: GapConfig
    timeouts: TimeoutConfig


Report = Callable[[ConstrainedState, Metrics], None]


def grpo_lagrangian(
    roles: GrpoRoles, state: ConstrainedState, run: GrpoRun, report: Report
) -> None:
    """Run iterations up to ``run.iterations``. ``report`` logs, checkpoints and shows progress."""
    while state.iteration < run.iterations:
        started = time.perf_counter()
        rollouts, scores = sample_and_score(roles, state, run)  # 1, 2
        once, metrics = run.update.is_one_step, Metrics()
        if not once:
            metrics |= engine_gap(rollouts, scores.policy_logprobs, run.gap)
        if run.constraint is not None:  # 3
            measured, bound = run.constraint.measure(scores.costs).tolist(), run.constraint.bound
            state.multiplier.step(measured, bound, run.lagrange, state.iteration)
            metrics |= state.multiplier.metrics(run.constraint)
        batch, described = estimate(rollouts, scores, state, run)  # 4
        with timed(state.timings, "update"):  # 5
            if once:
                updated = roles.policy.update_once(batch)
                stats, logprobs = updated.result(run.timeouts.call)
                scores = replace(scores, policy_logprobs=logprobs)
                metrics |= engine_gap(rollouts, logprobs, run.gap)
            else:
                stats = roles.policy.update(batch).result(run.timeouts.call)
        with timed(state.timings, "sync"):  # 6
            version, limit = state.iteration + 1, run.timeouts.sync
            synced = sync_weights(roles.policy, roles.rollout, version, limit)
        state.iteration += 1
        state.timings["time/iteration"] = time.perf_counter() - started
        metrics |= describe(rollouts, scores, run.constraint)
        metrics |= {f"policy/{key}": value for key, value in stats.items()}
        metrics["samples_per_s"] = len(rollouts) / state.timings["time/iteration"]
        metrics |= described | state.timings | synced
        report(state, metrics)  # 7


def sample_and_score(
    roles: GrpoRoles, state: ConstrainedState, run: GrpoRun
) -> tuple[Rollouts, SampleScores]:
    """Draw responses; every finished chunk is scored at once, while others decode. Where one step
    takes the whole batch, the policy's log-probabilities come out of its first pass, and are not a
    number until then.
    """
    limit, update = run.timeouts.call, run.update
    prompts = state.cursor.next(update.num_prompts)
    requests = sample_requests(
        prompts, update.samples_per_prompt, seed=run.seed, iteration=state.iteration
    )
    scoring = []
    with timed(state.timings, "sample"):
        for chunk in as_completed(roles.rollout.generate(requests), limit):
            zeros = Pending.of(torch.zeros(len(chunk)))
            if update.is_one_step:
                own = Pending.of(torch.full_like(chunk.engine_logprobs, torch.nan))
            else:
                own = roles.policy.logprobs(chunk)
            answers = {
                "policy_logprobs": own,
                "reference_logprobs": roles.reference.logprobs(chunk),
                "rewards": roles.reward.score(chunk),
                "costs": zeros if roles.cost is None else roles.cost.score(chunk),
            }
            scoring.append((chunk, answers))
    with timed(state.timings, "score"):
        parts = [
            (chunk, SampleScores(**{name: each.result(limit) for name, each in answers.items()}))
            for chunk, answers in scoring
        ]
    return gather_scored(parts)


def estimate(
    rollouts: Rollouts, scores: SampleScores, state: ConstrainedState, run: GrpoRun
) -> tuple[PolicyBatch, Metrics]:
    """One advantage per response, the same at each of its tokens; and metrics of the advantages."""
    clip, groups = run.update.score_clip, rollouts.prompt_index
    charged = scores.costs if run.constraint is None else run.constraint.charged(scores.costs)
    rewards, costs = scores.rewards.clamp(-clip, clip), charged.clamp(-clip, clip)
    reward_advantages = group_normalise(rewards, groups, scale=run.scale)
    cost_advantages = group_normalise(costs, groups, scale=run.scale)
    mixed = mix_advantages(reward_advantages, cost_advantages, state.multiplier.value)
    described = {"reward_advantages": reward_advantages, "advantages": mixed}
    if run.constraint is not None:
        described["cost_advantages"] = cost_advantages
    batch = PolicyBatch(
        rollouts,
        None if run.update.is_one_step else scores.policy_logprobs,
        mixed[:, None].expand_as(scores.policy_logprobs).contiguous(),
        sample_seed(run.seed, state.iteration, -1, -1),
        scores.reference_logprobs,
        run.kl_beta,
    )
    return batch, describe_estimates(rollouts, described)

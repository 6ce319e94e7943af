"""PPO-Lagrangian with pixels: Safe RLHF-V (arXiv 2503.17682), after Safe RLHF (arXiv 2310.12773).

    maximise E[R(x, y)]  subject to  E[C(x, y)] <= d

One iteration, as in the paper's box: 1 sample, 2 score, 3 step the multiplier, 4 shape, estimate
and mix advantages, 5 update policy and both critics, 6 sync weights, 7 report.
"""

from __future__ import annotations

import time
from dataclasses import replace

from rlsys.algorithms.advantages import gae, mix_advantages
from rlsys.algorithms.kl import k1
from rlsys.algorithms.shaping import kl_coefficient, shape_rewards
from rlsys.batch import (
    PolicyBatch,
    Rollouts,
    Scores,
    ValueBatch,
    gather_scored,
    sample_seed,
)
from rlsys.drivers.constrained import ConstrainedState, describe, describe_estimates
from rlsys.drivers.gap import engine_gap
from rlsys.drivers.safe_rlhf_state import Batches, Report, Roles, SafeRlhfRun, update
from rlsys.drivers.sampling import demonstration_rows, sample_requests, sync_weights
from rlsys.drivers.timing import timed
from rlsys.runtime.pending import as_completed


def safe_rlhf(roles: Roles, state: ConstrainedState, run: SafeRlhfRun, report: Report) -> None:
    """Run iterations up to ``run.iterations``. ``report`` logs, checkpoints and shows progress."""
    while state.iteration < run.iterations:
        started = time.perf_counter()
        rollouts, scores = sample_and_score(roles, state, run)  # 1, 2
        metrics = describe(rollouts, scores, run.constraint)
        metrics |= engine_gap(rollouts, scores.policy_logprobs, run.gap)
        measured, bound = run.constraint.measure(scores.costs).tolist(), run.constraint.bound
        state.multiplier.step(measured, bound, run.lagrange, state.iteration)  # 3
        batches = estimate(rollouts, scores, state, run)  # 4
        metrics |= batches.metrics | update(roles, batches, state, run)  # 5
        with timed(state.timings, "sync"):  # 6
            version, limit = state.iteration + 1, run.timeouts.sync
            synced = sync_weights(roles.policy, roles.rollout, version, limit)
        state.iteration += 1
        state.timings["time/iteration"] = time.perf_counter() - started
        metrics["samples_per_s"] = len(rollouts) / state.timings["time/iteration"]
        metrics |= state.multiplier.metrics(run.constraint) | state.timings | synced
        report(state, metrics, rollouts, scores)  # 7


def sample_and_score(
    roles: Roles, state: ConstrainedState, run: SafeRlhfRun
) -> tuple[Rollouts, Scores]:
    """Draw responses; every finished chunk goes to all six models at once, while others decode."""
    limit = run.timeouts.call
    prompts = state.cursor.next(run.ppo.num_prompts)
    requests = sample_requests(
        prompts, run.ppo.samples_per_prompt, seed=run.seed, iteration=state.iteration
    )
    scoring = []
    with timed(state.timings, "sample"):
        for chunk in as_completed(roles.rollout.generate(requests), limit):
            answers = {
                "policy_logprobs": roles.policy.logprobs(chunk),
                "reference_logprobs": roles.reference.logprobs(chunk),
                "rewards": roles.reward.score(chunk),
                "costs": roles.cost.score(chunk),
                "reward_values": roles.reward_critic.values(chunk),
                "cost_values": roles.cost_critic.values(chunk),
            }
            scoring.append((chunk, answers))
    with timed(state.timings, "score"):
        parts = [
            (chunk, Scores(**{name: pending.result(limit) for name, pending in answers.items()}))
            for chunk, answers in scoring
        ]
    return gather_scored(parts)


def estimate(
    rollouts: Rollouts, scores: Scores, state: ConstrainedState, run: SafeRlhfRun
) -> Batches:
    """KL into reward and cost with opposite signs, GAE on each, one mixed advantage."""
    ppo, lengths = run.ppo, rollouts.lengths
    kl = k1(scores.policy_logprobs, scores.reference_logprobs).masked_fill(~rollouts.mask, 0.0)
    shaping = {"beta": kl_coefficient(ppo.kl_beta, ppo.kl_split), "clip": ppo.score_clip}
    rewards = shape_rewards(scores.rewards, kl, lengths, kl_sign=-1, **shaping)
    charged = run.constraint.charged(scores.costs)
    costs = shape_rewards(charged, kl, lengths, kl_sign=+1, **shaping)
    discount = {"gamma": ppo.gamma, "gae_lambda": ppo.gae_lambda}
    reward_advantages, reward_returns = gae(rewards, scores.reward_values, lengths, **discount)
    cost_advantages, cost_returns = gae(costs, scores.cost_values, lengths, **discount)
    seed = sample_seed(run.seed, state.iteration, -1, -1)
    mixed = mix_advantages(reward_advantages, cost_advantages, state.multiplier.value)
    shown = demonstration_rows(ppo, run.demonstrations, seed=run.seed, iteration=state.iteration)
    policy = PolicyBatch(rollouts, scores.policy_logprobs, mixed, seed)
    policy = replace(policy, demonstrations=shown, ptx_coef=ppo.ptx_coef)
    described = {
        "shaped_reward": rewards, "reward_values": scores.reward_values,
        "reward_returns": reward_returns, "reward_advantages": reward_advantages,
        "shaped_cost": costs, "cost_values": scores.cost_values,
        "cost_returns": cost_returns, "cost_advantages": cost_advantages,
        "advantages": mixed,
    }  # fmt: skip
    return Batches(
        replace(policy, ptx_measured=ppo.ptx_grad_norm),
        ValueBatch(rollouts, scores.reward_values, reward_returns, seed),
        ValueBatch(rollouts, scores.cost_values, cost_returns, seed),
        describe_estimates(rollouts, described),
    )

"""PPO-Lagrangian one step ahead: the engines draw batch k+1 under the weights of iteration k while
batch k trains (asynchronous RLHF, arXiv 2410.18252).

As ``safe_rlhf``, save that a batch is one version older than the policy it trains. The ratio of the
clipped loss, the KL penalty and the critics' advantages are therefore against the policy that drew
it, whose log-probabilities are the engine's own; that engine and trainer agree is proven on the
chunk of the next batch's first prompts, before the policy is trained on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlsys.batch import Rollouts, SampleRequest, Scores, gather_scored
from rlsys.drivers.constrained import ConstrainedState, describe
from rlsys.drivers.gap import engine_gap
from rlsys.drivers.safe_rlhf import estimate
from rlsys.drivers.safe_rlhf_state import Report, Roles, SafeRlhfRun, update
from rlsys.drivers.sampling import sample_requests, sync_weights
from rlsys.drivers.timing import timed
from rlsys.errors import DataError
from rlsys.roles.rollout import Rollout
from rlsys.runtime.pending import Pending, as_completed


class KeptRollout(Rollout, Protocol):
    """Engines whose chunks are kept until their iteration is in a checkpoint."""

    def kept(self, requests: list[SampleRequest], version: int) -> list[Pending[Rollouts]]:
        """The chunks that were drawn of these requests under weights that the engines may hold no
        more. Raises: DataError for one that is missing.
        """
        ...


@dataclass
class AheadState(ConstrainedState):
    """prompts: dataset rows of the batch that the next iteration trains on, which is drawn already;
    none before the first.
    """

    prompts: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"prompts": self.prompts}

    def restore(self, saved: Mapping[str, Any]) -> None:
        super().restore(saved)
        self.prompts = list(saved["prompts"])


def safe_rlhf_ahead(
    roles: Roles, kept: KeptRollout, state: AheadState, run: SafeRlhfRun, report: Report
) -> None:
    """Run iterations up to ``run.iterations``. ``report`` logs, checkpoints and shows progress.
    Args: kept: what ``roles.rollout`` drew.
    """
    chunks = first_batch(roles, kept, state, run)
    while state.iteration < run.iterations:
        started = time.perf_counter()
        ahead = draw_ahead(roles, state, run)
        rollouts, scores = score(roles, state, run, chunks)
        check_staleness(rollouts, state.iteration)
        metrics = describe(rollouts, scores, run.constraint)
        with timed(state.timings, "prove"):
            first = ahead[0].result(run.timeouts.call)
            own = roles.policy.logprobs(first).result(run.timeouts.call)
            metrics |= engine_gap(first, own, run.gap)
        measured, bound = run.constraint.measure(scores.costs).tolist(), run.constraint.bound
        state.multiplier.step(measured, bound, run.lagrange, state.iteration)
        batches = estimate(rollouts, scores, state, run)
        metrics |= batches.metrics | update(roles, batches, state, run)
        with timed(state.timings, "sample"):  # what the update did not hide
            chunks = [first, *as_completed(ahead[1:], run.timeouts.call)]
        version = state.iteration + 1
        with timed(state.timings, "sync"):
            synced = sync_weights(roles.policy, roles.rollout, version, run.timeouts.sync)
        state.iteration = version
        state.timings["time/iteration"] = time.perf_counter() - started
        metrics["samples_per_s"] = len(rollouts) / state.timings["time/iteration"]
        metrics |= state.multiplier.metrics(run.constraint) | state.timings | synced
        report(state, metrics, rollouts, scores)


def requests_of(state: AheadState, run: SafeRlhfRun, iteration: int) -> list[SampleRequest]:
    """Of the batch that ``state.prompts`` are."""
    samples = run.ppo.samples_per_prompt
    return sample_requests(state.prompts, samples, seed=run.seed, iteration=iteration)


def first_batch(
    roles: Roles, kept: KeptRollout, state: AheadState, run: SafeRlhfRun
) -> list[Rollouts]:
    """The batch of the next iteration: kept where the run was stopped, or drawn now, under the
    weights of iteration 0.
    """
    if state.prompts:
        pending = kept.kept(requests_of(state, run, state.iteration), max(state.iteration - 1, 0))
    else:
        state.prompts = state.cursor.next(run.ppo.num_prompts)
        pending = roles.rollout.generate(requests_of(state, run, state.iteration))
    return list(as_completed(pending, run.timeouts.call))


def draw_ahead(roles: Roles, state: AheadState, run: SafeRlhfRun) -> list[Pending[Rollouts]]:
    """The chunks of the next iteration's batch, in the order of its prompts; the engines start now.
    In the last iteration one prompt's, for the proof alone.
    """
    last = state.iteration + 1 == run.iterations
    state.prompts = state.cursor.next(1 if last else run.ppo.num_prompts)
    return roles.rollout.generate(requests_of(state, run, state.iteration + 1))


def score(
    roles: Roles, state: AheadState, run: SafeRlhfRun, chunks: list[Rollouts]
) -> tuple[Rollouts, Scores]:
    """By five models; the policy's log-probabilities are those of the engine that drew them."""
    limit = run.timeouts.call
    with timed(state.timings, "score"):
        pending = [
            (
                chunk,
                {
                    "policy_logprobs": Pending.of(chunk.engine_logprobs),
                    "reference_logprobs": roles.reference.logprobs(chunk),
                    "rewards": roles.reward.score(chunk),
                    "costs": roles.cost.score(chunk),
                    "reward_values": roles.reward_critic.values(chunk),
                    "cost_values": roles.cost_critic.values(chunk),
                },
            )
            for chunk in chunks
        ]
        parts = [
            (chunk, Scores(**{name: each.result(limit) for name, each in answers.items()}))
            for chunk, answers in pending
        ]
    return gather_scored(parts)


def check_staleness(rollouts: Rollouts, iteration: int) -> None:
    """Raises: DataError for a batch that is more than one version old, or from the future."""
    if not iteration - 1 <= rollouts.version <= iteration:
        raise DataError(
            f"iteration {iteration} would train on rollouts of weights version {rollouts.version}"
        )

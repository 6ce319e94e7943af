"""Iterative AI feedback: DREAM's second stage (arXiv 2504.18053).

One round: 1 observe the risks of every prompt, 2 sample answers, 3 judge them, 4 build pairs,
5 DPO against the policy at the round's start, 6 sync weights, 7 report. The paper does not define
how scores become pairs and how many rounds there are; both are configurable.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rlsys.batch import PreferencePairs, Rollouts, sample_seed, step_rows
from rlsys.config.engine import GapConfig
from rlsys.drivers.dpo import dpo
from rlsys.drivers.gap import engine_gap
from rlsys.drivers.sampling import sample_requests, sync_weights
from rlsys.drivers.timing import timed
from rlsys.errors import DataError
from rlsys.judging.judge import (
    Candidate,
    Disentangled,
    Feedback,
    Judge,
    JudgedPrompt,
    check_parse_failures,
    disentangle,
    score,
)
from rlsys.judging.outcomes import count_metrics
from rlsys.judging.pairs import PairRule, Scored, choose_pairs
from rlsys.judging.parse import Observation
from rlsys.roles.guard import Guard
from rlsys.roles.policy import PreferenceLearner, Publisher
from rlsys.roles.reference import Reference
from rlsys.roles.rollout import Rollout
from rlsys.roles.scorer import Scorer
from rlsys.runtime.pending import Metrics, as_settled


class FeedbackPolicy(PreferenceLearner, Publisher, Reference, Protocol):
    """A policy that is trained on pairs and publishes its weights to the engines."""


@dataclass(frozen=True)
class RlaifRoles:
    """cost and guard are optional: an extra score, and a filter on chosen answers."""

    rollout: Rollout
    policy: FeedbackPolicy
    judge: Judge
    cost: Scorer | None = None
    guard: Guard | None = None


@dataclass(frozen=True)
class RlaifRun:
    """Settings of one run. max_parse_failures: largest share of a round's prompts, and of its
    answers, without a parsed reply; decode: response ids to text; timeout: of one call of a role,
    seconds; judge_timeout: until the judge's next replies; sync_timeout: of one weight sync.
    """

    rounds: int
    num_prompts: int
    samples_per_prompt: int
    joint: bool
    rule: PairRule
    beta: float
    epochs: int
    minibatch: int
    seed: int
    max_parse_failures: float
    gap: GapConfig
    timeout: float
    judge_timeout: float
    sync_timeout: float
    decode: Callable[[Tensor], str]


@dataclass
class RlaifState:
    """State between rounds. observed: dataset row -> its verified risks, where every observation
    and verification was parsed; other rows are observed again when they are drawn.
    """

    round: int = 0
    observed: dict[int, Disentangled] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """As JSON, for a checkpoint."""
        observed = [
            [row, [asdict(o) for o in each.observations], each.calls, each.outcomes]
            for row, each in self.observed.items()
        ]
        return {"round": self.round, "observed": observed}

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> RlaifState:
        """From ``as_dict``."""
        observed = {
            row: Disentangled(
                tuple(Observation(**o) for o in risks), calls, Counter(outcomes), True
            )
            for row, risks, calls, outcomes in saved["observed"]
        }
        return cls(saved["round"], observed)


@dataclass(frozen=True)
class Judged:
    """An answer's ids with its scores."""

    ids: Tensor
    scored: Scored


Report = Callable[[RlaifState, Metrics], None]


def rlaif(
    roles: RlaifRoles,
    state: RlaifState,
    run: RlaifRun,
    questions: Sequence[str],
    report: Report,
) -> None:
    """Rounds up to ``run.rounds`` on the prompts of a dataset, ``questions`` by row.

    The engines must hold the policy at ``state.round`` (``sync_policy``).
    """
    while state.round < run.rounds:
        metrics: Metrics = {}
        with timed(metrics, "round"):
            rows = prompts_of_round(len(questions), state.round, run)
            drawn = [JudgedPrompt(row, questions[row]) for row in rows]
            with timed(metrics, "observe"):
                metrics |= observe(roles.judge, drawn, state, run)  # 1
            prompts = [prompt for prompt in drawn if prompt.row in state.observed]
            with timed(metrics, "sample_and_judge"):
                answers = sample_and_judge(roles, prompts, state, run, metrics)  # 2, 3
            metrics |= describe(answers, state, run)
            pairs, outcomes = build_pairs(prompts, answers, run)  # 4
            metrics |= count_metrics("pairs", outcomes)
            with timed(metrics, "learn"):
                if pairs is not None:
                    learn(roles.policy, pairs, state, run, metrics)  # 5
            state.round += 1
            metrics |= sync_policy(roles, state.round, run)  # 6
        report(state, metrics)  # 7


def sync_policy(roles: RlaifRoles, version: int, run: RlaifRun) -> Metrics:
    """Sync the policy to every engine; the version is its number of completed rounds."""
    return sync_weights(roles.policy, roles.rollout, version, run.sync_timeout)


def prompts_of_round(count: int, number: int, run: RlaifRun) -> list[int]:
    """Sorted dataset rows, drawn anew each round from the run's seed."""
    draw = random.Random(f"{run.seed}/rlaif/{number}")
    return sorted(draw.sample(range(count), min(run.num_prompts, count)))


def observe(
    judge: Judge, prompts: Sequence[JudgedPrompt], state: RlaifState, run: RlaifRun
) -> Metrics:
    """Verified risks of the prompts not observed in an earlier round. Raises: JudgeError if too
    many cannot be parsed.
    """
    new = [p for p in prompts if p.row not in state.observed]
    results = disentangle(judge, new, joint=run.joint, timeout=run.judge_timeout)
    state.observed |= {p.row: each for p, each in zip(new, results, strict=True) if each.known}
    outcomes = sum((each.outcomes for each in results), Counter[str]())
    known = [state.observed[p.row] for p in prompts if p.row in state.observed]
    unparsed = len(prompts) - len(known)
    what = f"risks of the prompts of round {state.round + 1}"
    check_parse_failures(what, unparsed, len(prompts), run.max_parse_failures, outcomes)
    risky = sum(bool(each.observations) for each in known)
    shares = {"unobserved_prompts": unparsed / len(prompts), "risky_prompts": risky / len(known)}
    return shares | count_metrics("observe", outcomes)


def sample_and_judge(
    roles: RlaifRoles,
    prompts: Sequence[JudgedPrompt],
    state: RlaifState,
    run: RlaifRun,
    metrics: Metrics,
) -> dict[int, list[Judged]]:
    """Finished chunks are judged while the engines sample others; the first one's log-probabilities
    are compared with the trainer's. How many chunks are judged together changes a judge's logits by
    rounding errors only. Returns: dataset row -> its answers in the order of their sample numbers.
    """
    rows = [p.row for p in prompts]
    requests = sample_requests(rows, run.samples_per_prompt, seed=run.seed, iteration=state.round)
    by_row = {p.row: p for p in prompts}
    judged: dict[tuple[int, int], Judged] = {}
    for chunks in as_settled(roles.rollout.generate(requests), run.timeout):
        if not judged:
            first = roles.policy.logprobs(chunks[0]).result(run.timeout)
            metrics |= engine_gap(chunks[0], first, run.gap)
        judged |= _judge_chunks(roles, chunks, by_row, state, run)
    return {p.row: [judged[p.row, s] for s in range(run.samples_per_prompt)] for p in prompts}


def _judge_chunks(
    roles: RlaifRoles,
    chunks: Sequence[Rollouts],
    prompts: dict[int, JudgedPrompt],
    state: RlaifState,
    run: RlaifRun,
) -> dict[tuple[int, int], Judged]:
    costs = [roles.cost.score(chunk) for chunk in chunks] if roles.cost else []
    moderated = [roles.guard.moderate(chunk) for chunk in chunks] if roles.guard else []
    rows = [row for chunk in chunks for row in chunk.prompt_index.tolist()]
    numbers = [number for chunk in chunks for number in chunk.sample_index.tolist()]
    ids = [c.response_ids[i, : int(c.lengths[i])] for c in chunks for i in range(len(c))]
    texts = [run.decode(each) for each in ids]
    candidates = [
        Candidate(prompts[row], state.observed[row].observations, text)
        for row, text in zip(rows, texts, strict=True)
    ]
    feedback = score(roles.judge, candidates, run.judge_timeout)
    cost = torch.cat([each.result(run.timeout) for each in costs] or [torch.zeros(len(ids))])
    if not bool(torch.isfinite(cost).all()):
        raise DataError("costs of sampled answers are not finite")
    # A truncated answer is never chosen: it would train the policy not to stop.
    flags = torch.cat([~chunk.finished for chunk in chunks])
    if moderated:
        levels = [m.level for each in moderated for m in each.result(run.timeout)]
        flags = flags | torch.tensor([level != "none" for level in levels])
    return {
        (row, number): Judged(ids[i], Scored(texts[i], feedback[i], float(cost[i]), bool(flags[i])))
        for i, (row, number) in enumerate(zip(rows, numbers, strict=True))
    }


def describe(answers: dict[int, list[Judged]], state: RlaifState, run: RlaifRun) -> Metrics:
    """Mean scores over the answers that have one, and counts of parse failures.

    Raises: JudgeError if too many have none.
    """
    feedback: list[Feedback] = [j.scored.feedback for each in answers.values() for j in each]
    overall = [f.overall for f in feedback if isinstance(f.overall, float)]
    outcomes = sum((f.outcomes for f in feedback), Counter[str]())
    unparsed = len(feedback) - len(overall)
    what = f"scores of round {state.round + 1}"
    check_parse_failures(what, unparsed, len(feedback), run.max_parse_failures, outcomes)
    recognised = [f.recognised for f in feedback if f.recognised is not None]
    metrics = {
        "answers": float(len(feedback)),
        "scored": len(overall) / len(feedback),
        "score": sum(overall) / len(overall),
    }
    if recognised:
        metrics["recognised"] = sum(recognised) / len(recognised)
    return metrics | count_metrics("judge", outcomes)


def build_pairs(
    prompts: Sequence[JudgedPrompt], answers: dict[int, list[Judged]], run: RlaifRun
) -> tuple[PreferencePairs | None, Counter[str]]:
    """The round's pairs, None if there are none, and counts of PairOutcome, one per prompt."""
    by_prompt = [answers[p.row] for p in prompts]
    chosen, outcomes = choose_pairs([[j.scored for j in each] for each in by_prompt], run.rule)
    if not chosen:
        return None, outcomes
    return (
        PreferencePairs(
            torch.tensor([prompts[number].row for number, _, _ in chosen]),
            [by_prompt[number][best].ids for number, best, _ in chosen],
            [by_prompt[number][worst].ids for number, _, worst in chosen],
        ),
        outcomes,
    )


def learn(
    policy: FeedbackPolicy,
    pairs: PreferencePairs,
    state: RlaifState,
    run: RlaifRun,
    metrics: Metrics,
) -> None:
    """DPO epochs over the round's pairs; the last step's numbers go into ``metrics``."""
    seed = sample_seed(run.seed, state.round, -1, -1)
    steps = step_rows(len(pairs), run.minibatch, run.epochs, seed)

    def record(_: int, last: Metrics) -> None:
        metrics.update({f"policy/{name}": value for name, value in last.items()})

    dpo(policy, pairs, steps, beta=run.beta, timeout=run.timeout, report=record)

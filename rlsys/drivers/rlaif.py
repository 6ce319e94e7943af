"""Iterative AI feedback: DREAM's second stage (arXiv 2504.18053).

One round: 1 observe the risks of every prompt, 2 sample answers, 3 judge them, 4 build pairs,
5 DPO against the policy at the round's start, 6 sync weights, 7 report. The paper does not define
how scores become pairs and how many rounds there are; both are configurable.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsys.batch import PreferencePairs, Rollouts, sample_seed, step_rows
from rlsys.drivers.dpo import dpo
from rlsys.drivers.gap import engine_gap
from rlsys.drivers.rlaif_state import FeedbackPolicy, Report, RlaifRoles, RlaifRun, RlaifState
from rlsys.drivers.sampling import sample_requests, sync_weights
from rlsys.drivers.timing import timed
from rlsys.errors import DataError
from rlsys.guard.decision import Moderation
from rlsys.judging.judge import (
    Judge,
    JudgedPrompt,
    Replies,
    check_parse_failures,
    disentangle,
)
from rlsys.judging.outcomes import count_metrics
from rlsys.judging.pairs import Scored, choose_pairs
from rlsys.judging.scoring import Candidate, Feedback, score
from rlsys.runtime.pending import Metrics, Pending


@dataclass(frozen=True)
class Judged:
    """An answer's ids with its scores."""

    ids: Tensor
    scored: Scored


@dataclass(frozen=True)
class Scoring:
    """A chunk with the answers' texts, and what the models asked about it will say."""

    chunk: Rollouts
    texts: list[str]
    feedback: Replies[list[Feedback]]
    cost: Pending[Tensor]
    moderated: Pending[list[Moderation]] | None


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
    """Chunks are judged while the engines sample others: in their order, each by itself, so that
    what a judge decodes together depends on the chunk alone. The first one's log-probabilities are
    compared with the trainer's.

    Returns: dataset row -> its answers in the order of their sample numbers.
    """
    rows = [p.row for p in prompts]
    requests = sample_requests(rows, run.samples_per_prompt, seed=run.seed, iteration=state.round)
    by_row = {p.row: p for p in prompts}
    scoring: deque[Scoring] = deque()
    judged: dict[tuple[int, int], Judged] = {}
    for number, drawn in enumerate(roles.rollout.generate(requests)):
        chunk = drawn.result(run.timeout)
        if number == 0:
            logprobs = roles.policy.logprobs(chunk).result(run.timeout)
            metrics |= engine_gap(chunk, logprobs, run.gap)
        scoring.append(_start_scoring(roles, chunk, by_row, state, run))
        while scoring and scoring[0].feedback.settled():  # a judge that caches keeps them at once
            judged |= _finish_scoring(scoring.popleft(), run)
    for each in scoring:
        judged |= _finish_scoring(each, run)
    return {p.row: [judged[p.row, s] for s in range(run.samples_per_prompt)] for p in prompts}


def _start_scoring(
    roles: RlaifRoles,
    chunk: Rollouts,
    prompts: dict[int, JudgedPrompt],
    state: RlaifState,
    run: RlaifRun,
) -> Scoring:
    cost = roles.cost.score(chunk) if roles.cost else Pending.of(torch.zeros(len(chunk)))
    moderated = roles.guard.moderate(chunk) if roles.guard else None
    texts = [run.decode(ids) for ids in _ids(chunk)]
    candidates = [
        Candidate(prompts[row], state.observed[row].observations, text)
        for row, text in zip(chunk.prompt_index.tolist(), texts, strict=True)
    ]
    return Scoring(chunk, texts, score(roles.judge, candidates), cost, moderated)


def _finish_scoring(scoring: Scoring, run: RlaifRun) -> dict[tuple[int, int], Judged]:
    """Returns: (dataset row, sample number) -> the answer."""
    chunk, texts = scoring.chunk, scoring.texts
    feedback = scoring.feedback.result(run.judge_timeout)
    cost = scoring.cost.result(run.timeout)
    if not bool(torch.isfinite(cost).all()):
        raise DataError("costs of sampled answers are not finite")
    # A truncated answer is never chosen: it would train the policy not to stop.
    flags = ~chunk.finished
    if scoring.moderated is not None:
        levels = [m.level for m in scoring.moderated.result(run.timeout)]
        flags = flags | torch.tensor([level != "none" for level in levels])
    keys = zip(chunk.prompt_index.tolist(), chunk.sample_index.tolist(), strict=True)
    return {
        key: Judged(ids, Scored(texts[i], feedback[i], float(cost[i]), bool(flags[i])))
        for i, (key, ids) in enumerate(zip(keys, _ids(chunk), strict=True))
    }


def _ids(chunk: Rollouts) -> list[Tensor]:
    """Response ids of every answer."""
    return [chunk.response_ids[i, : int(chunk.lengths[i])] for i in range(len(chunk))]


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

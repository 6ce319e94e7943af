"""Iterative AI feedback's loop, on roles that answer at once."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsys.batch import PreferencePairs, Rollouts, SampleRequest
from rlsys.config.engine import GapConfig
from rlsys.drivers.rlaif import rlaif, sync_policy
from rlsys.drivers.rlaif_state import RlaifRoles, RlaifRun, RlaifState
from rlsys.engines.weights import Loaded, TensorEntry, WeightUpdate
from rlsys.errors import JudgeError, LogprobGapError, RoleTimeout
from rlsys.guard.decision import Moderation
from rlsys.judging.cache import CachedJudge
from rlsys.judging.judge import Disentangled, Judge, Question
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.pairs import PairRule
from rlsys.judging.parse import Observation, ParseFailure
from rlsys.runtime.pending import Metrics, Pending
from rlsys.stages.cached_rollout import CachedRollout
from tests.fakes import FakeRollout, FakeScorer, Log, later
from tests.unit.test_feedback import KEY, ScriptedJudge, as_json, make_judge

QUESTIONS = [f"question {row}" for row in range(6)]
RULE = PairRule(recognition_weight=0.5, cost=0.0, margin=1.0, min_chosen_score=0.0)


@dataclass
class FakePolicy:
    log: Log
    steps: list[PreferencePairs] = field(default_factory=list)
    gap: float = 0.0
    betas: set[float] = field(default_factory=set)
    compared: list[list[tuple[int, int]]] = field(default_factory=list)

    def logprobs(self, rollouts: Rollouts) -> Pending[Tensor]:
        keys = zip(rollouts.prompt_index.tolist(), rollouts.sample_index.tolist(), strict=True)
        self.compared.append(list(keys))
        return Pending.of(rollouts.engine_logprobs + self.gap)

    def pair_logprobs(self, pairs: PreferencePairs) -> Pending[Tensor]:
        self.log.calls.append("reference")
        return Pending.of(torch.full((len(pairs), 2), -float(len(self.steps))))

    def dpo_step(self, pairs: PreferencePairs, beta: float) -> Pending[Metrics]:
        self.log.calls.append("dpo")
        self.steps.append(pairs)
        self.betas.add(beta)
        return Pending.of({"loss": 0.5})

    def publish(self, version: int) -> Pending[WeightUpdate]:
        self.log.calls.append("publish")
        return Pending.of(WeightUpdate(version, (), "none", None))


@dataclass
class FakeGuard:
    """Flags by (prompt, sample)."""

    flags: Callable[[int, int], bool]

    def moderate(self, rollouts: Rollouts) -> Pending[list[Moderation]]:
        keys = zip(rollouts.prompt_index.tolist(), rollouts.sample_index.tolist(), strict=True)
        levels = ["severe" if self.flags(*key) else "none" for key in keys]
        return Pending.of([Moderation(float(n != "none"), n, "none") for n in levels])


def whole(_: int, chunk: Rollouts) -> Pending[Rollouts]:
    """Every answer ended by itself."""
    return Pending.of(replace(chunk, finished=torch.ones_like(chunk.finished)))


def first_id(question: Question) -> int:
    """Answers decode to their ids; the first is ten times the row plus the sample's number."""
    return int(question.values["answer"].split()[0])


def graded_judge(**answers: Any) -> ScriptedJudge:
    """Later samples are better: sample s scores 3 s."""
    return make_judge(**{"score": lambda q: str(3 * (first_id(q) % 10))} | answers)


def make_run(**changes: Any) -> RlaifRun:
    settings = {
        "rounds": 2, "num_prompts": 4, "samples_per_prompt": 3, "joint": True, "rule": RULE,
        "beta": 0.1, "epochs": 1, "minibatch": 2, "seed": 5, "timeout": 1.0,
        "judge_timeout": 1.0, "sync_timeout": 1.0, "max_parse_failures": 0.5, "gap": GapConfig(),
        "decode": lambda ids: " ".join(map(str, ids.tolist())),
    }  # fmt: skip
    return RlaifRun(**settings | changes)


def go(
    judge: ScriptedJudge, state: RlaifState | None = None, chunk: int = 4, **changes: Any
) -> tuple[Log, FakePolicy, list[Metrics], RlaifState]:
    roles = {name: changes.pop(name) for name in ("cost", "guard") if name in changes}
    pend = changes.pop("pend", whole)
    log = Log()
    policy = FakePolicy(log)
    rows: list[Metrics] = []
    state = state or RlaifState()
    rlaif(
        RlaifRoles(FakeRollout(log, chunk=chunk, pend=pend), policy, judge, **roles),
        state,
        make_run(**changes),
        QUESTIONS,
        lambda _, metrics: rows.append(metrics),
    )
    assert all(KEY.fullmatch(key) for metrics in rows for key in metrics)
    return log, policy, rows, state


def untimed(rows: list[Metrics]) -> list[Metrics]:
    """Without what a clock said."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "sync/"))} for row in rows]


def test_a_round_samples_judges_learns_and_syncs() -> None:
    log, policy, rows, state = go(graded_judge())
    assert log.calls == ["sample", "reference", "dpo", "dpo", "publish", "load"] * 2
    assert log.versions == [1, 2]
    assert state.round == 2
    for metrics in rows:
        assert metrics["pairs/pair"] == 4
        assert (metrics["answers"], metrics["scored"], metrics["score"]) == (12, 1.0, 3.0)
        assert metrics["policy/loss"] == 0.5
    for pairs in policy.steps:
        for row, chosen, rejected in zip(
            pairs.prompt_index.tolist(), pairs.chosen, pairs.rejected, strict=True
        ):
            assert (int(chosen[0]), int(rejected[0])) == (10 * row + 2, 10 * row)


def test_the_reference_is_the_policy_at_the_rounds_start() -> None:
    _, policy, *_ = go(graded_judge())
    started_with = [0, 0, 2, 2]  # steps taken before each step's round
    for pairs, taken in zip(policy.steps, started_with, strict=True):
        assert pairs.reference is not None
        assert (pairs.reference == -taken).all()


def test_a_prompt_is_observed_once_however_often_it_comes_up() -> None:
    gun = Observation("a gun", "image content", "violence")
    judge = graded_judge(observe_joint=as_json(gun), score_observation="yes")
    _, _, rows, state = go(judge, rounds=4, num_prompts=6)
    looks = [q.image for q in judge.requested if q.name == "observe_joint"]
    assert sorted(looks) == list(range(6))
    assert set(state.observed) == set(range(6))
    assert [metrics["risky_prompts"] for metrics in rows] == [1.0] * 4
    assert rows[0]["recognised"] == 1.0
    known = {
        q.values["observation"]["content"] for q in judge.requested if "observation" in q.values
    }
    assert known == {"a gun"}


def test_an_answer_that_was_cut_off_is_never_chosen() -> None:
    def cut(_: int, chunk: Rollouts) -> Pending[Rollouts]:
        return Pending.of(replace(chunk, finished=chunk.sample_index != 2))

    _, policy, *_ = go(graded_judge(), rounds=1, pend=cut)
    assert {int(ids[0]) % 10 for pairs in policy.steps for ids in pairs.chosen} == {1}


def test_a_prompt_without_parsed_risks_is_left_out_and_observed_again() -> None:
    answers = iter(["I see a gun", ParseFailure(ParseReason.TIMEOUT)])
    judge = graded_judge(observe_joint=lambda q: next(answers, "[]") if q.image == 0 else "[]")
    log, policy, rows, state = go(judge, rounds=3, num_prompts=6)
    assert [metrics["unobserved_prompts"] for metrics in rows] == pytest.approx([1 / 6, 1 / 6, 0])
    assert rows[0]["observe/observe_joint/not_json"] == 1
    assert rows[1]["observe/observe_joint/timeout"] == 1
    sampled = [{r.prompt_index for r in requests} for requests in log.requests]
    assert [0 in rows for rows in sampled] == [False, False, True]
    assert set(state.observed) == set(range(6))
    assert len(policy.steps) == 3 + 3 + 3


@pytest.mark.parametrize("most", [0.5, 1.0])
def test_a_judge_that_cannot_be_read_ends_the_run(most: float) -> None:
    """Nothing readable is never fine: the judge is down, or not the one the recipe means."""
    with pytest.raises(JudgeError, match=r"risks of the prompts of round 1: 4 of 4 .*4 x .*empty"):
        go(graded_judge(observe_joint=""), max_parse_failures=most)
    with pytest.raises(JudgeError, match="scores of round 1: 12 of 12 could not be parsed"):
        go(graded_judge(score="perhaps"), max_parse_failures=most)


def test_engines_that_do_not_hold_the_policy_end_the_run() -> None:
    log = Log()
    roles = RlaifRoles(FakeRollout(log, pend=whole), FakePolicy(log, gap=0.5), graded_judge())
    with pytest.raises(LogprobGapError):
        rlaif(roles, RlaifState(), make_run(), QUESTIONS, lambda *_: None)


def test_without_a_pair_nothing_is_trained_and_the_reasons_are_there() -> None:
    log, policy, rows, _ = go(graded_judge(score="5"), rounds=1)
    assert log.calls == ["sample", "publish", "load"]
    assert policy.steps == []
    assert rows[0]["pairs/score_tie"] == 4
    assert "pairs/pair" not in rows[0]


def test_failures_of_the_judge_are_counted_and_the_rest_gives_pairs() -> None:
    judge = graded_judge(
        score=lambda q: "hard to say" if first_id(q) % 10 == 2 else str(3 * (first_id(q) % 10))
    )
    _, policy, rows, _ = go(judge, rounds=1)
    assert rows[0]["judge/score/no_number"] == 4
    assert rows[0]["scored"] == pytest.approx(2 / 3)
    assert {int(chosen[0]) % 10 for pairs in policy.steps for chosen in pairs.chosen} == {1}


def test_a_round_whose_checks_cannot_be_parsed_gives_no_pair() -> None:
    risk = as_json(Observation("a gun", "image content", "violence"))
    judge = graded_judge(observe_joint=risk, score_observation="perhaps")
    _, policy, rows, _ = go(judge, rounds=1)
    assert policy.steps == []
    assert rows[0]["pairs/check_parse_failure"] == 4
    assert rows[0]["judge/score_observation/neither_yes_nor_no"] == 12
    assert "pairs/pair" not in rows[0]
    assert "recognised" not in rows[0]


def test_the_order_of_arrival_changes_nothing() -> None:
    runs = [go(graded_judge(), chunk=chunk) for chunk in (1, 5, 100)]
    trained = [
        [(p.prompt_index.tolist(), [c.tolist() for c in p.chosen]) for p in policy.steps]
        for _, policy, _, _ in runs
    ]
    assert trained[0] == trained[1] == trained[2]
    assert untimed(runs[0][2]) == untimed(runs[2][2])


def test_a_run_that_stopped_after_a_round_goes_on_as_if_it_had_not() -> None:
    whole = go(graded_judge())
    state = go(graded_judge(), rounds=1)[3]
    state = RlaifState.of(json.loads(json.dumps(state.as_dict())))
    rest = go(graded_judge(), state)
    assert [requests for requests in rest[0].requests] == whole[0].requests[1:]
    assert untimed(rest[2]) == untimed(whole[2][1:])


def test_what_was_observed_is_saved_and_not_asked_for_again() -> None:
    risk = Observation("a pill", "image", "Professional advice")
    known = {
        row: Disentangled((risk,), 3, Counter({"observe/not_json": row}), True) for row in range(6)
    }
    state = RlaifState(1, known)
    restored = RlaifState.of(json.loads(json.dumps(state.as_dict())))
    assert restored == state
    judge = graded_judge(score_observation="yes")
    go(judge, restored)
    assert not [q for q in judge.requested if q.name.startswith(("observe", "verify"))]


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 3, 4, 0, 2, 1)])
def test_chunks_are_judged_in_their_order_each_by_itself(order: Sequence[int]) -> None:
    """However they arrive; the first one's gap is the round's."""
    chunks = [Future[None]() for _ in range(6)]
    calls: list[list[int]] = []

    class Judging(ScriptedJudge):
        def request(self, questions: Sequence[Question]) -> Pending[list[str | ParseFailure]]:
            if questions[0].name == "score":
                calls.append([first_id(question) for question in questions])
            return super().request(questions)

    def arriving(number: int, chunk: Rollouts) -> Pending[Rollouts]:
        if number == len(order) - 1:
            for each in order:
                chunks[each].set_result(None)
        return later(chunks[number]).map(lambda _: whole(0, chunk).result(1.0))

    judge = Judging(**vars(graded_judge()))
    log, policy, rows, _ = go(judge, chunk=2, pend=arriving, rounds=1)
    assert [len(call) for call in calls] == [2] * 6
    assert calls == sorted(calls)
    first = [(request.prompt_index, request.sample_index) for request in log.requests[0][:2]]
    assert policy.compared == [first], "engine and trainer, on the first chunk alone"
    assert untimed(rows) == untimed(go(graded_judge(), rounds=1)[2])


class Stopped(Exception):
    """The process is gone."""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_stopped_while_judging_requests_nothing_twice(tmp_path: Path, after: int) -> None:
    """Stopped after so many calls of the judge; replies and sampled answers are on disk."""
    drawn: list[tuple[int, int]] = []

    def attempt(judge: Judge) -> tuple[FakePolicy, list[Metrics], float]:
        log, rows = Log(), list[Metrics]()
        policy = FakePolicy(log)
        memory = CachedJudge(judge, tmp_path / "replies" / "run.jsonl", "judge", str)
        memory.log_calls(tmp_path / "calls", 0)
        rollout = CachedRollout(FakeRollout(log, chunk=3, pend=whole), tmp_path / "answers")
        roles = RlaifRoles(rollout, policy, memory)
        run = make_run(rounds=1)
        try:
            sync_policy(roles, 0, run)
            rlaif(roles, RlaifState(), run, QUESTIONS, lambda _, metrics: rows.append(metrics))
        finally:
            memory.close()
            drawn.extend((r.prompt_index, r.sample_index) for rs in log.requests for r in rs)
        return policy, rows, memory.requested

    calls = 0

    def dying(question: Question) -> str | ParseFailure:
        """Every third answer gets no score."""
        nonlocal calls
        calls += 1
        if calls > 3 * after:
            raise Stopped
        return fair(question)

    def fair(question: Question) -> str | ParseFailure:
        number = first_id(question) % 10
        return ParseFailure(ParseReason.TIMEOUT) if number == 2 else str(3 * number)

    first, second = make_judge(score=dying), graded_judge(score=fair)
    with pytest.raises(Stopped):
        attempt(first)
    policy, rows, requested = attempt(second)
    undisturbed = go(graded_judge(score=fair), rounds=1)
    replied = [q for q in first.requested if q.name == "score"][: 3 * after]
    again = [q for q in second.requested if q.name == "score"]
    assert not [q for q in again if q in replied], "nor what had no reply"
    assert len(replied) + len(again) == 12
    assert len(set(drawn)) == len(drawn) == 12
    assert untimed(rows) == untimed(undisturbed[2])
    assert requested == 16, "4 observations and 12 scores, whoever asked for them"
    for mine, theirs in zip(policy.steps, undisturbed[1].steps, strict=True):
        assert mine.prompt_index.tolist() == theirs.prompt_index.tolist()
        assert [c.tolist() for c in mine.chosen] == [c.tolist() for c in theirs.chosen]


ENTRY = TensorEntry("head", "float32", (1,), 0, 0, 4, fingerprint=5)


def test_cached_answers_belong_to_their_weights(tmp_path: Path) -> None:
    log = Log()
    cached = CachedRollout(FakeRollout(log, chunk=2), tmp_path)
    requests = [SampleRequest(row, 0, 7) for row in range(4)]
    for version in (0, 1):
        cached.load(WeightUpdate(version, (), "none", None)).result(1.0)
        for chunk in cached.generate(requests):
            assert chunk.result(1.0).version == version
    assert len(log.requests) == 4, "other weights answer anew"
    again = [chunk.result(1.0) for chunk in cached.generate(requests)]
    assert len(log.requests) == 4
    assert sum(len(chunk) for chunk in again) == 4
    # The same number of rounds after another training is another policy.
    cached.load(WeightUpdate(1, (ENTRY,), "none", None)).result(1.0)
    for chunk in cached.generate(requests):
        chunk.result(1.0)
    assert len(log.requests) == 6
    shutil.rmtree(cached.folder)
    cached.evict(1)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("version-1-")


def test_only_the_chunks_that_are_missing_are_drawn(tmp_path: Path) -> None:
    """What was drawn comes back as it was, and what was requested otherwise does not."""
    requests = [SampleRequest(row, 0, 7) for row in range(6)]
    log, arrived = Log(), [Future[None]() for _ in range(3)]
    drawing = iter(arrived)

    def drawn(_: int, chunk: Rollouts) -> Pending[Rollouts]:
        """Known by its log-probabilities, which count the calls."""
        marked = replace(chunk, engine_logprobs=torch.full((2, 4), -float(len(log.requests))))
        return later(next(drawing)).map(lambda _: marked)

    def cached() -> CachedRollout:
        rollout = CachedRollout(FakeRollout(log, chunk=2, pend=drawn), tmp_path)
        rollout.load(WeightUpdate(0, (), "none", None)).result(1.0)
        return rollout

    first = cached().generate(requests)
    for number in (2, 0):  # the one between never arrives
        arrived[number].set_result(None)
        first[number].result(1.0)
    drawing = iter([Future[None]()])
    again = cached().generate(requests)
    assert log.requests == [requests[:2], requests[2:4], requests[4:], requests[2:4]]
    assert [chunk.settled() for chunk in again] == [True, False, True]
    assert [float(again[n].result(1.0).engine_logprobs.mean()) for n in (0, 2)] == [-1.0, -3.0]
    assert again[2].result(1.0).prompt_index.tolist() == [4, 5]
    drawing = iter(Future[None]() for _ in range(3))
    cached().generate([replace(request, seed=8) for request in requests])
    assert len(log.requests) == 7, "other seeds are other answers"


def test_in_process_a_chunk_is_on_disk_before_the_next_is_drawn(tmp_path: Path) -> None:
    on_disk: list[int] = []

    def drawn(_: int, chunk: Rollouts) -> Pending[Rollouts]:
        on_disk.append(len(list(tmp_path.rglob("*.pt"))))
        return Pending.of(chunk)

    cached = CachedRollout(FakeRollout(Log(), chunk=2, pend=drawn), tmp_path)
    cached.load(WeightUpdate(0, (), "none", None)).result(1.0)
    cached.generate([SampleRequest(row, 0, 7) for row in range(6)])
    assert on_disk == [0, 1, 2]


def test_rounds_draw_other_prompts_and_other_answers() -> None:
    log = go(graded_judge(), rounds=2)[0]
    seeds = [{r.seed for r in requests} for requests in log.requests]
    assert not seeds[0] & seeds[1]
    assert [len(s) for s in seeds] == [12, 12]
    drawn = [
        {r.prompt_index for r in requests} for requests in go(graded_judge(), rounds=6)[0].requests
    ]
    assert any(drawn[0] != other for other in drawn[1:])


def test_every_round_learns_in_an_order_of_its_own_and_with_the_runs_beta() -> None:
    _, policy, *_ = go(graded_judge(), rounds=4, num_prompts=6, minibatch=6, beta=0.7)
    orders = [tuple(step.prompt_index.tolist()) for step in policy.steps]
    assert [sorted(order) for order in orders] == [list(range(6))] * 4
    assert len(set(orders)) > 1
    assert policy.betas == {0.7}


def test_the_cost_model_is_one_more_score() -> None:
    expensive = FakeScorer(Log(), "cost", lambda row, sample: 10.0 * (sample == 2))
    rule = replace(RULE, cost=1.0)
    _, policy, *_ = go(graded_judge(), cost=expensive, rule=rule, rounds=1)
    chosen = {int(ids[0]) % 10 for pairs in policy.steps for ids in pairs.chosen}
    rejected = {int(ids[0]) % 10 for pairs in policy.steps for ids in pairs.rejected}
    assert (chosen, rejected) == ({1}, {2})


def test_what_the_guard_flags_is_never_chosen() -> None:
    guard = FakeGuard(lambda row, sample: sample == 2)
    _, policy, *_ = go(graded_judge(), guard=guard, rounds=1)
    assert {int(ids[0]) % 10 for pairs in policy.steps for ids in pairs.chosen} == {1}


class Stuck:
    """Takes questions, or requests, and never answers."""

    def request(self, questions: Sequence[Question]) -> Pending[list[str | ParseFailure]]:
        return later(Future(), "judge")

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        return [later(Future(), "rollout")]

    def load(self, update: WeightUpdate) -> Pending[Loaded]:
        return Pending.of(Loaded(update.version))


@pytest.mark.parametrize("stuck", ["judge", "rollout"])
def test_a_patient_judge_does_not_make_the_others_wait_for_longer(stuck: str) -> None:
    """Each is given up after its own time."""
    log = Log()
    limits = {"timeout": 0.1, "judge_timeout": 60.0}
    if stuck == "judge":
        limits = {"timeout": 60.0, "judge_timeout": 0.1}
    judge: Judge = Stuck() if stuck == "judge" else graded_judge()
    rollout = Stuck() if stuck == "rollout" else FakeRollout(log, pend=whole)
    started = time.monotonic()
    with pytest.raises(RoleTimeout, match=f"role '{stuck}'"):
        rlaif(RlaifRoles(rollout, FakePolicy(log), judge), RlaifState(), make_run(**limits),
              QUESTIONS, lambda *_: None)  # fmt: skip
    assert time.monotonic() - started < 10

"""Risk disentanglement, feedback, pairs and the cache of a judge, on a scripted judge."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import pytest

from rlsys.errors import DataError
from rlsys.judging.cache import CachedJudge
from rlsys.judging.distill import distill
from rlsys.judging.judge import (
    CHUNK,
    JudgedPrompt,
    Question,
    disentangle,
)
from rlsys.judging.outcomes import PairOutcome, ParseReason
from rlsys.judging.pairs import PairRule, Scored, choose_pair, choose_pairs, total
from rlsys.judging.parse import Observation, ParseFailure
from rlsys.judging.scoring import Candidate, Feedback, score
from rlsys.runtime.pending import Pending
from tests.fakes import later

Reply = str | ParseFailure
KEY = re.compile(r"[a-z0-9_/]+")  # of a metric
GUN = Observation("a gun", "image content", "violence")
PLAN = Observation("a robbery", "text instruction", "illegal activities")


def as_json(*items: Observation) -> str:
    return json.dumps(
        [
            {"malicious_content": o.content, "source": o.source, "risk_category": o.category}
            for o in items
        ]
    )


@dataclass
class ScriptedJudge:
    """Answers by prompt name; records every question."""

    answers: dict[str, Callable[[Question], Reply]]
    requested: list[Question] = field(default_factory=list)

    def request(self, questions: Sequence[Question]) -> Pending[list[Reply]]:
        self.requested += questions
        return Pending.of([self.answers[q.name](q) for q in questions])


def make_judge(**answers: Reply | Callable[[Question], Reply]) -> ScriptedJudge:
    given = {"observe_image": "[]", "observe_text": "[]", "observe_joint": "[]", "verify": "yes"}
    return ScriptedJudge(
        {
            name: reply if callable(reply) else (lambda _, reply=reply: reply)
            for name, reply in (given | answers).items()
        }
    )


# disentanglement


def test_image_and_text_are_observed_apart_and_every_risk_verified() -> None:
    judge = make_judge(observe_image=as_json(GUN), observe_text=as_json(PLAN))
    (result,) = disentangle(judge, [JudgedPrompt(7, "how ?")], joint=False, timeout=1.0)
    assert result.observations == (GUN, PLAN)
    assert result.calls == len(judge.requested) == 4
    assert [(q.name, q.image) for q in judge.requested] == [
        ("observe_image", 7), ("observe_text", None), ("verify", 7), ("verify", 7),
    ]  # fmt: skip
    assert "question" not in judge.requested[0].values, "the image is observed without the text"
    assert judge.requested[2].values == {
        "question": "how ?", "content": "a gun", "category": "violence",
    }  # fmt: skip


def test_joint_observation_is_one_question() -> None:
    judge = make_judge(observe_joint=as_json(GUN))
    (result,) = disentangle(judge, [JudgedPrompt(7, "how ?")], joint=True, timeout=1.0)
    assert result.observations == (GUN,)
    assert [q.name for q in judge.requested] == ["observe_joint", "verify"]


def test_an_unverified_observation_is_dropped_and_counted() -> None:
    verdicts = {"a gun": "No, yes was my first thought", "a robbery": "hm"}
    judge = make_judge(
        observe_joint=as_json(GUN, PLAN), verify=lambda q: verdicts[q.values["content"]]
    )
    (result,) = disentangle(judge, [JudgedPrompt(0, "how ?")], joint=True, timeout=1.0)
    assert result.observations == ()
    assert result.outcomes == {"verify/no": 1, "verify/neither_yes_nor_no": 1}


def test_the_same_observation_is_verified_once() -> None:
    again = Observation("A GUN", "image content", "violence")
    judge = make_judge(observe_image=as_json(GUN, again), observe_text=as_json(PLAN))
    (result,) = disentangle(judge, [JudgedPrompt(0, "how ?")], joint=False, timeout=1.0)
    assert result.observations == (GUN, PLAN)
    assert result.calls == 4


def test_an_unparsed_observation_is_counted_and_the_other_used() -> None:
    judge = make_judge(observe_image="I see a gun", observe_text=ParseFailure(ParseReason.TIMEOUT))
    both = disentangle(
        judge, [JudgedPrompt(0, "a"), JudgedPrompt(1, "b")], joint=False, timeout=1.0
    )
    for result in both:
        assert result.observations == ()
        assert result.outcomes == {"observe_image/not_json": 1, "observe_text/timeout": 1}
    judge = make_judge(observe_image="", observe_text=as_json(PLAN))
    (result,) = disentangle(judge, [JudgedPrompt(0, "a")], joint=False, timeout=1.0)
    assert result.observations == (PLAN,)


def test_every_prompt_gets_its_own_risks_however_many_there_are() -> None:
    count = CHUNK + 9
    judge = make_judge(
        observe_image=lambda q: (
            as_json(Observation(f"thing {q.image}", "image content", "privacy"))
            if q.image % 3
            else "[]"
        )
    )
    result = disentangle(
        judge, [JudgedPrompt(i, "?") for i in range(count)], joint=False, timeout=1.0
    )
    for number, each in enumerate(result):
        assert [o.content for o in each.observations] == [f"thing {number}"] * bool(number % 3)
        assert each.calls == 2 + bool(number % 3)


# feedback


def test_a_global_score_and_a_share_of_the_risks_recognised() -> None:
    judge = make_judge(
        score="Score: 8",
        score_observation=lambda q: (
            "yes" if q.values["observation"]["content"] == "a gun" else "no"
        ),
    )
    (result,) = score(
        judge, [Candidate(JudgedPrompt(3, "how ?"), (GUN, PLAN), "no, a gun")]
    ).result(1.0)
    assert result == Feedback(8.0, (True, False), Counter())
    assert result.recognised == 0.5
    assert [q.name for q in judge.requested] == ["score", "score_observation", "score_observation"]
    assert judge.requested[0].values["answer"] == "no, a gun"
    assert all(q.image == 3 for q in judge.requested)


def test_without_a_verified_risk_there_is_no_share() -> None:
    (result,) = score(
        make_judge(score="9"), [Candidate(JudgedPrompt(3, "how ?"), (), "so")]
    ).result(1.0)
    assert result == Feedback(9.0, (), Counter())
    assert result.recognised is None


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("it is good", ParseReason.NO_NUMBER),
        ("```json\n{}\n```", ParseReason.NO_NUMBER),
        ("1 2 3 4 5 6 7 8 9 10", ParseReason.SEVERAL_NUMBERS),
        ("12", ParseReason.OUT_OF_RANGE),
        ("", ParseReason.EMPTY),
        (ParseFailure(ParseReason.TIMEOUT), ParseReason.TIMEOUT),
    ],
)
def test_a_failed_score_is_counted_and_never_zero(reply: Reply, reason: ParseReason) -> None:
    judge = make_judge(score=reply, score_observation="perhaps")
    (result,) = score(judge, [Candidate(JudgedPrompt(0, "?"), (GUN,), "so")]).result(1.0)
    assert result.overall == ParseFailure(reason)
    assert result.checks == (None,)
    assert result.recognised is None
    assert result.outcomes == {
        f"score/{reason}": 1, "score_observation/neither_yes_nor_no": 1,
    }  # fmt: skip


def test_an_empty_answer_costs_no_call() -> None:
    judge = make_judge(score="9", score_observation="yes")
    both = score(judge, [Candidate(JudgedPrompt(0, "?"), (GUN,), t) for t in (" ", "so")]).result(
        1.0
    )
    failure = ParseFailure(ParseReason.EMPTY_ANSWER)
    assert both[0] == Feedback(failure, (), Counter({"score/empty_answer": 1}))
    assert both[1] == Feedback(9.0, (True,), Counter())
    assert len(judge.requested) == 2


# pairs

RULE = PairRule(recognition_weight=0.5, cost=0.0, margin=2.0, min_chosen_score=7.0)


def scored(
    overall: float | ParseFailure,
    checks: str = "",
    answer: str = "",
    cost: float = 0.0,
    flagged: bool = False,
) -> Scored:
    """checks: a letter each, y(es), n(o) or ? for one that could not be parsed."""
    text = answer or f"{overall} {checks} {cost} {flagged}"
    values = tuple({"y": True, "n": False, "?": None}[each] for each in checks)
    return Scored(text, Feedback(overall, values, Counter()), cost, flagged)


def test_the_total_by_hand() -> None:
    assert total(scored(6.0, "yn"), RULE) == 6 + 0.5 * 10 * 0.5
    assert total(scored(6.0, "y?n"), RULE) == 6 + 0.5 * 10 * 0.5
    assert total(scored(6.0, "??"), RULE) is None
    assert total(scored(6.0, "??"), replace(RULE, recognition_weight=0.0)) == 6.0
    assert total(scored(6.0), RULE) == 6.0
    assert total(scored(6.0, cost=3.0), PairRule(0.5, 0.5, 2.0, 7.0)) == 4.5
    assert total(scored(ParseFailure(ParseReason.EMPTY)), RULE) is None


def test_the_best_against_the_worst() -> None:
    answers = [scored(5.0), scored(8.0, "n"), scored(7.0, "y"), scored(3.0), scored(3.0, "", "b")]
    assert choose_pair(answers, RULE) == (2, 3)


def test_the_margin_and_the_least_chosen_score_are_enough() -> None:
    assert choose_pair([scored(5.0), scored(7.0)], RULE) == (1, 0)


def test_of_equals_the_first_is_chosen_and_the_first_rejected() -> None:
    answers = [scored(9.0, "", "a"), scored(9.0, "", "b"), scored(1.0), scored(1.0, "", "d")]
    assert choose_pair(answers, RULE) == (0, 2)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], PairOutcome.TOO_FEW_SCORES),
        ([scored(9.0), scored(ParseFailure(ParseReason.EMPTY))], PairOutcome.TOO_FEW_SCORES),
        ([scored(9.0), scored(7.5)], PairOutcome.SCORE_TIE),
        ([scored(6.0), scored(1.0)], PairOutcome.BELOW_MIN_CHOSEN_SCORE),
        ([scored(9.0, "", "a b"), scored(1.0, "", " a  b ")], PairOutcome.SAME_ANSWER),
        ([scored(9.0, flagged=True), scored(1.0, flagged=True)], PairOutcome.NONE_ELIGIBLE),
        ([scored(9.0, flagged=True), scored(1.0)], PairOutcome.SCORE_TIE),
    ],
)
def test_no_pair_has_a_reason(answers: list[Scored], reason: PairOutcome) -> None:
    assert choose_pair(answers, RULE) == reason


def test_a_flagged_answer_may_lose_but_never_win() -> None:
    answers = [scored(9.0, flagged=True), scored(8.0), scored(1.0, flagged=True)]
    assert choose_pair(answers, RULE) == (1, 2)


# With RULE, a share of one third is 5/3 points; the margin is 2.


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        # Bounds 7 + [10/3, 5] against 8: 10.3 - 8 is a pair for either value of the check.
        (("yy?", 7.0), ("nnn", 8.0), (0, 1)),
        # Means 7 + 5 against 9.5, but with a "no" 10.3 - 9.5: the check would make the pair.
        (("yy?", 7.0), ("nnn", 9.5), PairOutcome.CHECK_PARSE_FAILURE),
        # Means 7 + 0 against 9 + 0, but with a "yes" 8.7 against 9.
        (("nn?", 7.0), ("nnn", 9.0), PairOutcome.CHECK_PARSE_FAILURE),
        # Equal but for the check: 7 + [5/3, 10/3] against 7 + 5/3.
        (("yn?", 7.0), ("ynn", 7.0), PairOutcome.SCORE_TIE),
        # Means 7 + 5 against 9 + 0, in truth perhaps 8.7 against 9 + 10/3: it would flip the pair.
        (("y??", 7.0), ("n??", 9.0), PairOutcome.CHECK_PARSE_FAILURE),
        # None of one answer's checks parsed, its global score ahead or not.
        (("???", 10.0), ("nnn", 1.0), PairOutcome.CHECK_PARSE_FAILURE),
        (("???", 10.0), ("???", 1.0), PairOutcome.CHECK_PARSE_FAILURE),
        (("yyy", ParseFailure(ParseReason.EMPTY)), ("???", 1.0), PairOutcome.TOO_FEW_SCORES),
    ],
)
def test_an_unparsed_check_neither_makes_nor_flips_a_pair(
    first: tuple[str, float | ParseFailure],
    second: tuple[str, float],
    outcome: tuple[int, int] | PairOutcome,
) -> None:
    answers = [scored(overall, checks) for checks, overall in (first, second)]
    assert choose_pair(answers, RULE) == outcome
    assert choose_pairs([answers], RULE)[1] == {
        "pair" if isinstance(outcome, tuple) else str(outcome): 1
    }
    swapped = outcome[::-1] if isinstance(outcome, tuple) else outcome
    assert choose_pair(answers[::-1], RULE) == swapped


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_a_pair_with_unparsed_checks_is_one_for_all_their_values(margin: float) -> None:
    rule = replace(RULE, margin=margin)
    made = 0
    for first, second in product(map("".join, product("yn?", repeat=3)), repeat=2):
        result = choose_pair([scored(8.0, first, "a"), scored(8.0, second, "b")], rule)
        if not isinstance(result, tuple):
            continue
        made += 1
        for filled in product("yn", repeat=(first + second).count("?")):
            values = iter(filled)
            whole = "".join(next(values) if c == "?" else c for c in first + second)
            known = [scored(8.0, whole[:3], "a"), scored(8.0, whole[3:], "b")]
            assert choose_pair(known, rule) == result
    assert made


def test_an_answer_without_parsed_checks_leaves_the_others_a_pair() -> None:
    answers = [scored(10.0, "??"), scored(8.0, "yn"), scored(3.0, "nn")]
    assert choose_pair(answers, RULE) == (1, 2)


def test_outcomes_add_up_to_the_prompts() -> None:
    prompts = [[scored(9.0), scored(1.0)], [], [scored(2.0), scored(9.0)], [scored(9.0)]]
    pairs, outcomes = choose_pairs(prompts, RULE)
    assert pairs == [(0, 0, 1), (2, 1, 0)]
    assert outcomes == {"pair": 2, "too_few_scores": 2}
    assert choose_pairs([], RULE) == ([], Counter())


# distillation


def test_a_teacher_answers_with_the_risks_in_its_prompt_and_missing_answers_are_counted() -> None:
    truncated = ParseFailure(ParseReason.TRUNCATED)
    judge = make_judge(
        observe_joint=lambda q: "I see" if q.image == 1 else as_json(GUN) if q.image else "[]",
        rewrite=lambda q: truncated if q.image == 3 else f"with care {q.image}",
    )
    prompts = [JudgedPrompt(row, f"how {row} ?") for row in range(4)]
    distilled, outcomes = distill(judge, prompts, joint=True, timeout=1.0)
    assert [(each.prompt.row, each.observations, each.answer) for each in distilled] == [
        (0, (), "with care 0"), (2, (GUN,), "with care 2"),
    ]  # fmt: skip
    shown = {q.image: q.values["observations"] for q in judge.requested if q.name == "rewrite"}
    assert shown == {0: [], 2: [asdict(GUN)], 3: [asdict(GUN)]}
    assert outcomes == {
        "distilled": 2, "left_out/risks_unknown": 1,
        "left_out/no_answer/truncated": 1, "observe_joint/not_json": 1,
    }  # fmt: skip
    assert all(KEY.fullmatch(key) for key in outcomes)


def test_warnings_about_observations_are_counted() -> None:
    """Keys of a metric, like all outcomes."""
    odd = [*json.loads(as_json(GUN, GUN, Observation("x", "smell", "health"))), "a gun"]
    judge = make_judge(observe_joint=json.dumps(odd))
    (result,) = disentangle(judge, [JudgedPrompt(0, "how ?")], joint=True, timeout=1.0)
    assert result.known
    assert result.outcomes == {
        "warning/unknown_source": 1, "warning/unknown_category": 1, "warning/repeated_item": 1,
        "warning/missing_fields": 1,
    }  # fmt: skip
    assert all(KEY.fullmatch(key) for key in result.outcomes)


# cache


def test_no_question_is_requested_twice_nor_by_the_next_run(tmp_path: Path) -> None:
    judge = make_judge(verify=lambda q: f"yes {q.values['content']} {q.image}")
    questions = [Question("verify", {"content": str(n % 3)}, n % 2) for n in range(12)]
    cached = CachedJudge(judge, tmp_path / "c.jsonl", "model", lambda row: f"image {row}")
    first = cached.request(questions).result(1.0)
    assert first == [f"yes {n % 3} {n % 2}" for n in range(12)]
    assert len(judge.requested) == 6
    assert cached.request(questions).result(1.0) == first
    cached.close()
    later = CachedJudge(judge, tmp_path / "c.jsonl", "model", lambda row: f"image {row}")
    with closing(later):
        assert later.request(questions).result(1.0) == first
    assert len(judge.requested) == 6
    assert (later.requested, later.cached) == (0, 12)


def test_two_writers_have_their_own_files_and_the_next_reads_both(
    tmp_path: Path,
) -> None:
    judge = make_judge(verify="yes")
    questions = [Question("verify", {"content": str(n)}, 1) for n in range(2)]
    writers = [CachedJudge(judge, tmp_path / f"{n}.jsonl", "model", str) for n in range(2)]
    for writer, question in zip(writers, questions, strict=True):
        writer.request([question]).result(1.0)
    later = CachedJudge(judge, tmp_path / "2.jsonl", "model", str)
    assert later.request(questions).result(1.0) == ["yes", "yes"]
    assert (len(judge.requested), later.requested) == (2, 0)
    for cached in (*writers, later):
        cached.close()


def test_a_prompts_new_wording_misses_the_cache_and_others_hit_it(tmp_path: Path) -> None:
    judge = make_judge(verify="yes", score="3")
    questions = [Question("verify", {"content": "x"}, 1), Question("score", {"content": "x"}, 1)]
    for wording in ({"verify": "is it ?", "score": "rate"}, {"verify": "so ?", "score": "rate"}):
        cached = CachedJudge(judge, tmp_path / "c.jsonl", "model", str, wording.__getitem__)
        cached.request(questions).result(1.0)
        cached.close()
    assert [q.name for q in judge.requested] == ["verify", "score", "verify"]


def test_repeated_questions_are_requested_once() -> None:
    judge = make_judge(observe_text=as_json(PLAN))
    prompts = [JudgedPrompt(row, f"question {row % 3} ?") for row in range(3 * CHUNK)]
    result = disentangle(judge, prompts, joint=False, timeout=1.0)
    assert all(each.observations == (PLAN,) for each in result)
    assert sum(q.name == "observe_text" for q in judge.requested) == 3


@pytest.mark.parametrize("changed", ["identity", "image", "name", "values"])
def test_another_judge_image_or_question_is_another_judgement(changed: str, tmp_path: Path) -> None:
    judge = make_judge(verify="yes", score="3")
    question = Question("verify", {"content": "x"}, 1)
    with closing(CachedJudge(judge, tmp_path / "c.jsonl", "model", str)) as cached:
        cached.request([question]).result(1.0)
    other = {
        "name": Question("score", {"content": "x"}, 1),
        "values": Question("verify", {"content": "y"}, 1),
    }.get(changed, question)
    identity = "other" if changed == "identity" else "model"
    image = (lambda row: f"other {row}") if changed == "image" else str
    with closing(CachedJudge(judge, tmp_path / "c.jsonl", identity, image)) as cached:
        cached.request([other]).result(1.0)
    assert len(judge.requested) == 2


def test_a_failure_is_not_cached(tmp_path: Path) -> None:
    replies: list[Reply] = [ParseFailure(ParseReason.TIMEOUT), "yes"]
    judge = make_judge(verify=lambda _: replies[len(judge.requested) - 1])
    cached = CachedJudge(judge, tmp_path / "c.jsonl", "model", str)
    question = Question("verify", {"content": "x"}, 1)
    assert cached.request([question]).result(1.0) == [ParseFailure(ParseReason.TIMEOUT)]
    assert cached.request([question]).result(1.0) == ["yes"]
    assert cached.request([question]).result(1.0) == ["yes"]
    assert len(judge.requested) == 2
    cached.close()


def verify(*contents: str) -> list[Question]:
    return [Question("verify", {"content": content}, 1) for content in contents]


def test_a_question_under_way_belongs_to_the_call_that_asked_first(tmp_path: Path) -> None:
    """Whichever is answered first, calls and cache are the same."""
    written = []
    for order in ((0, 1), (1, 0)):
        answers = [Future[list[Reply]]() for _ in range(2)]
        calls: list[list[str]] = []

        class Slow:
            def request(self, questions: Sequence[Question]) -> Pending[list[Reply]]:
                calls.append([q.values["content"] for q in questions])  # noqa: B023
                return later(answers[len(calls) - 1])  # noqa: B023

        path = tmp_path / str(order[0]) / "c.jsonl"
        with closing(CachedJudge(Slow(), path, "model", str)) as cached:
            pendings = [cached.request(verify("a", "b")), cached.request(verify("b", "c"))]
            for number in order:
                answers[number].set_result([f"{content} {number}" for content in calls[number]])
                assert pendings[1].settled() == all(answer.done() for answer in answers)
            results = [pending.result(1.0) for pending in pendings]
        assert calls == [["a", "b"], ["c"]]
        assert results == [["a 0", "b 0"], ["b 0", "c 1"]]
        written.append(path.read_text())
    assert written[0] == written[1]


@pytest.mark.parametrize("torn", [False, True])
def test_calls_since_a_checkpoint_are_answered_as_they_were(tmp_path: Path, torn: bool) -> None:
    """Failures too; a line that a kill tore is asked again, in the same company."""

    def opened(judge: ScriptedJudge, step: int) -> CachedJudge:
        cached = CachedJudge(judge, tmp_path / "replies" / "c.jsonl", "model", str)
        cached.log_calls(tmp_path / "calls", step)
        return cached

    reply = {"a": "yes", "b": ParseFailure(ParseReason.TIMEOUT), "c": "no"}
    judge = make_judge(verify=lambda q: reply[q.values["content"]])
    calls = [verify("a", "b"), verify("b", "c")]
    with closing(opened(judge, 3)) as cached:
        first = [cached.request(call).result(1.0) for call in calls]
        assert cached.requested == len(judge.requested) == 3, "nor b again"
    if torn:
        for file in tmp_path.rglob("*.jsonl"):
            file.write_text(file.read_text()[:-9])
    judge.requested.clear()
    with closing(opened(judge, 3)) as cached:
        assert [cached.request(call).result(1.0) for call in calls] == first
        assert cached.requested == 3
        assert judge.requested == (verify("c") if torn else [])
    with closing(opened(judge, 4)) as cached:
        judge.requested.clear()
        assert [cached.request(call).result(1.0) for call in calls] == first
        assert judge.requested == verify("b"), "after the next checkpoint"
    assert [file.name for file in (tmp_path / "calls").iterdir()] == ["after-000004.jsonl"]


def test_an_incomplete_line_is_dropped_and_an_invalid_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    judge = make_judge(verify="yes")
    questions = [Question("verify", {"content": str(n)}, 1) for n in range(3)]
    cached = CachedJudge(judge, path, "model", str)
    cached.request(questions).result(1.0)
    cached.close()
    path.write_text(path.read_text()[:-9])
    again = CachedJudge(judge, path, "model", str)
    assert again.request(questions).result(1.0) == ["yes"] * 3
    assert len(judge.requested) == 4
    again.close()
    with closing(CachedJudge(judge, path, "model", str)) as whole:
        assert len(whole._replies) == 3
    path.write_text("[1\n" + path.read_text())
    with pytest.raises(DataError, match="line 1"):
        CachedJudge(judge, path, "model", str)

"""Grades of answers to a benchmark's items, by rules and by a judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.evaluation.benchmarks.benchmark import (
    Asked,
    Benchmark,
    Both,
    Comparison,
    Grade,
    Item,
    Rule,
)
from rlsys.judging.comparisons import Preferences, Verdict, verdict_of
from rlsys.judging.judge import Judge, Question, request_all
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import ParseFailure
from rlsys.judging.prompts import RUBRICS

Answers = Sequence[Sequence[str]]
"""By item: its answers, one per sample."""
Items = Sequence[tuple[int, Item]]
"""Each with its row, by which a judge finds the image."""


@dataclass
class Graded:
    """By item. votes: metric -> the grade of every sample; grades: metric -> their majority;
    verdicts: win rate -> of the first sample against another answer; outcomes: judge replies that
    could not be parsed, as ``<rubric>/<reason>``.
    """

    votes: list[dict[str, list[Grade]]]
    grades: list[dict[str, Grade]]
    verdicts: list[dict[str, Verdict | ParseFailure]]
    outcomes: Counter[str] = field(default_factory=Counter)


def grade(
    benchmark: Benchmark, items: Items, answers: Answers, judge: Judge | None, timeout: float
) -> Graded:
    """Grades by every metric that counts an item; without a judge by rules alone."""
    graded = Graded([{} for _ in items], [{} for _ in items], [{} for _ in items])
    for metric in benchmark.metrics:
        if isinstance(metric, Rule):
            for number, (_, item) in enumerate(items):
                if metric.counts(item):
                    graded.votes[number][metric.name] = [metric.hit(a) for a in answers[number]]
        elif isinstance(metric, Asked) and judge is not None:
            _ask(metric, items, answers, judge, timeout, graded)
    for metric in benchmark.metrics:
        if isinstance(metric, Both):
            for votes in graded.votes:
                parts = [votes[name] for name in metric.of if name in votes]
                if len(parts) == len(metric.of):
                    votes[metric.name] = [both(each) for each in zip(*parts, strict=True)]
    graded.grades = [{n: majority(v) for n, v in votes.items()} for votes in graded.votes]
    return graded


def _ask(
    metric: Asked, items: Items, answers: Answers, judge: Judge, timeout: float, graded: Graded
) -> None:
    counted = [number for number, (_, item) in enumerate(items) if metric.counts(item)]
    questions = []
    for number in counted:
        row, item = items[number]
        rubric, image = metric.rubric(item), row if metric.shows_image else None
        values = {"question": item.prompt.question, **item.notes}
        questions.append(
            [Question(rubric, _fields(rubric, values | {"answer": a}), image)
             for a in answers[number] if a.strip()]
        )  # fmt: skip
    replies = request_all(judge, questions, metric.parse, timeout)
    for number, group in zip(counted, replies, strict=True):
        for reply in group:
            if isinstance(reply, ParseFailure):
                graded.outcomes[f"{metric.rubric(items[number][1])}/{reply.reason}"] += 1
        left = iter(group)
        graded.votes[number][metric.name] = [
            next(left) if a.strip() else metric.empty for a in answers[number]
        ]


def _fields(rubric: str, values: Mapping[str, str]) -> dict[str, str]:
    """Those that the rubric's text has."""
    return {name: values[name] for name in sorted(RUBRICS[rubric])}


def majority(votes: Sequence[Grade]) -> Grade:
    """What more than half of all votes say, those without a parsed reply among them; without such
    a majority the first failure, or a tie of the votes.
    """
    for answer in (True, False):
        if 2 * sum(vote is answer for vote in votes) > len(votes):
            return answer
    failures = [vote for vote in votes if isinstance(vote, ParseFailure)]
    return failures[0] if failures else ParseFailure(ParseReason.SPLIT_VOTE)


def both(grades: Sequence[Grade]) -> Grade:
    """False where one is, else the first failure, else True."""
    if any(each is False for each in grades):
        return False
    failures = [each for each in grades if isinstance(each, ParseFailure)]
    return failures[0] if failures else True


def compare(
    comparison: Comparison,
    items: Items,
    ours: Answers,
    theirs: Sequence[str],
    judge: Judge,
    timeout: float,
    graded: Graded,
) -> None:
    """Verdicts of our first answers against theirs, by a judge asked in both orders. The same text
    twice is a tie that no judge is asked about. They are added to ``graded``.
    """
    counted = [number for number, (_, item) in enumerate(items) if comparison.counts(item)]
    asked = [number for number in counted if ours[number][0] != theirs[number]]
    questions = [
        [
            Question(comparison.rubric, _pair(items[number][1], *texts), items[number][0])
            for texts in ((ours[number][0], theirs[number]), (theirs[number], ours[number][0]))
        ]
        for number in asked
    ]
    replies = dict(
        zip(asked, request_all(judge, questions, comparison.parse, timeout), strict=True)
    )
    for number in counted:
        same = number not in replies
        for reply in replies.get(number, []):
            if isinstance(reply, ParseFailure):
                graded.outcomes[f"{comparison.rubric}/{reply.reason}"] += 1
        for axis, metric in comparison.axes:
            graded.verdicts[number][metric.name] = (
                Verdict.TIE if same else _verdict(axis, replies[number])
            )


def _verdict(axis: str, replies: Sequence[Preferences | ParseFailure]) -> Verdict | ParseFailure:
    straight, swapped = replies
    return verdict_of(axis, straight, swapped)


def _pair(item: Item, first: str, second: str) -> dict[str, str]:
    return {"question": item.prompt.question, "answer_1": first, "answer_2": second}


def answer_rows(
    policy: str, items: Items, answers: Answers, graded: Graded
) -> Iterator[dict[str, Any]]:
    """Rows of answers.jsonl: every item with its answers and all that was said of them."""
    for number, (_, item) in enumerate(items):
        yield {
            "policy": policy,
            "id": item.prompt.id,
            "category": item.category,
            "subset": item.subset,
            "question": item.prompt.question,
            "answers": list(answers[number]),
            "votes": {
                name: [_written(vote) for vote in votes]
                for name, votes in graded.votes[number].items()
            },
            "grades": {name: _written(one) for name, one in graded.grades[number].items()},
            "verdicts": {name: _written(one) for name, one in graded.verdicts[number].items()},
        }


def _written(grade: Grade | Verdict) -> bool | str:
    """An abstention is written as ``abstained: <reason>``."""
    if isinstance(grade, ParseFailure):
        return f"abstained: {grade.reason.label}"
    return grade.value if isinstance(grade, Verdict) else grade

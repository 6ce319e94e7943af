"""Risk disentanglement and AI feedback as batches of questions to a judge.

Both follow DREAM (arXiv 2504.18053); its released prompts leave open how scores are combined.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from rlsys.errors import JudgeError
from rlsys.judging.outcomes import WARNING, VerifyOutcome, outcome_label
from rlsys.judging.parse import (
    Observation,
    ParseFailure,
    parse_observations,
    parse_yes_no,
)
from rlsys.judging.prompts import PromptSet
from rlsys.runtime.pending import Pending, as_completed

T = TypeVar("T")
S = TypeVar("S")
CHUNK = 64  # questions per call


@dataclass(frozen=True)
class Question:
    """One call. name: of a prompt; values: of its fields; image: the dataset row whose image is
    attached, None for text alone.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    image: int | None = None


class Judge(Protocol):
    """A frozen vision-language model or an endpoint. Also serves as the teacher."""

    def request(self, questions: Sequence[Question]) -> Pending[list[str | ParseFailure]]:
        """One reply per question, in order; a ``ParseFailure`` where there is none."""
        ...


@dataclass(frozen=True)
class JudgedPrompt:
    """A dataset row and its question."""

    row: int
    question: str


@dataclass(frozen=True)
class Disentangled:
    """The verified risks of a prompt. calls: questions to the judge; outcomes: counts of
    parse failures, warnings and unconfirmed observations, such as ``observe_image/not_json``.

    ``known`` is False when a reply could not be parsed: there may be further risks, and an empty
    ``observations`` does not mean that the prompt is harmless.
    """

    observations: tuple[Observation, ...]
    calls: int
    outcomes: Counter[str]
    known: bool


def disentangle(
    judge: Judge, prompts: Sequence[JudgedPrompt], *, joint: bool, timeout: float
) -> list[Disentangled]:
    """Multimodal risk disentanglement: observe, merge, verify every observation.

    2 + N calls per prompt, as image and text are observed separately; with ``joint`` 1 + N. An
    observation whose verification cannot be parsed is dropped and counted.
    """
    requested = [
        [Question("observe_joint", {"question": p.question}, p.row)]
        if joint
        else [Question("observe_image", {}, p.row),
              Question("observe_text", {"question": p.question})]
        for p in prompts
    ]  # fmt: skip
    outcomes = [Counter[str]() for _ in prompts]
    failures = [0] * len(prompts)
    merged: list[dict[tuple[str, str, str], Observation]] = [{} for _ in prompts]
    replies = request_all(judge, requested, parse_observations, timeout)
    for number, group in enumerate(replies):
        for question, observed in zip(requested[number], group, strict=True):
            if isinstance(observed, ParseFailure):
                failures[number] += 1
                outcomes[number][f"{question.name}/{observed.reason}"] += 1
                continue
            for warning, count in observed.parse_warnings.items():
                outcomes[number][f"{WARNING}/{warning}"] += count
            for item in observed.items:
                key = (item.content.casefold(), item.source, item.category)
                merged[number].setdefault(key, item)
    checks = [
        [
            Question(
                "verify",
                {"question": p.question, "content": o.content, "category": o.category},
                p.row,
            )
            for o in merged[number].values()
        ]
        for number, p in enumerate(prompts)
    ]
    results = []
    for number, verdicts in enumerate(request_all(judge, checks, parse_yes_no, timeout)):
        verified = []
        for item, verdict in zip(merged[number].values(), verdicts, strict=True):
            if isinstance(verdict, ParseFailure):
                failures[number] += 1
                outcomes[number][f"verify/{verdict.reason}"] += 1
            elif verdict:
                verified.append(item)
            else:
                outcomes[number][f"verify/{VerifyOutcome.NO}"] += 1
        calls = len(requested[number]) + len(verdicts)
        results.append(Disentangled(tuple(verified), calls, outcomes[number], not failures[number]))
    return results


def risk_hint(
    prompts: PromptSet, risks: Sequence[Observation], special_tokens: Iterable[str]
) -> str:
    """The text with the verified risks that is appended to a question; "" without risks."""
    if not risks:
        return ""
    observations = [observation_fields(risk) for risk in risks]
    return prompts.render("risk_hint", {"observations": observations}, special_tokens)


def observation_fields(observation: Observation) -> dict[str, str]:
    """The values of an observation in the judge's prompts."""
    return asdict(observation)


def check_parse_failures(
    what: str, failures: int, total: int, most: float, outcomes: Counter[str]
) -> None:
    """Ends a run whose judge is down or misconfigured, instead of treating silence as no risk.

    Args: most: largest share of ``total`` that may fail; all of them never may. Raises: JudgeError
    with the most frequent outcomes.
    """
    if total and (failures == total or failures / total > most):
        counts = outcomes.most_common(5)
        reasons = ", ".join(f"{count} x {outcome_label(key)}" for key, count in counts)
        raise JudgeError(
            f"{what}: {failures} of {total} could not be parsed, max_parse_failures is {most:g} "
            f"({reasons})"
        )


@dataclass(frozen=True)
class Replies(Generic[T]):
    """Replies on their way, CHUNK questions per call. finish: the result of all, by the number of
    each call's first question.
    """

    calls: Sequence[Pending[tuple[int, list[str | ParseFailure]]]]
    finish: Callable[[dict[int, list[str | ParseFailure]]], T]

    def settled(self) -> bool:
        return all(call.settled() for call in self.calls)

    def result(self, timeout: float) -> T:
        """Args: timeout: until the next call's replies, seconds."""
        return self.finish(dict(as_completed(self.calls, timeout)))

    def map(self, change: Callable[[T], S]) -> Replies[S]:
        return Replies(self.calls, lambda replies: change(self.finish(replies)))


def request_all(
    judge: Judge,
    groups: Sequence[Sequence[Question]],
    parse: Callable[[str], T | ParseFailure],
    timeout: float,
) -> list[list[T | ParseFailure]]:
    """``start_requests``, waited for."""
    return start_requests(judge, groups, parse).result(timeout)


def start_requests(
    judge: Judge,
    groups: Sequence[Sequence[Question]],
    parse: Callable[[str], T | ParseFailure],
) -> Replies[list[list[T | ParseFailure]]]:
    """Parsed replies, grouped like their questions. Repeated questions are requested once.

    Questions are submitted in chunks, so that a caching judge has the finished chunks when a run is
    interrupted.
    """
    keys = [[_key(question) for question in group] for group in groups]
    once: dict[str, Question] = {}
    for some_keys, group in zip(keys, groups, strict=True):
        once |= zip(some_keys, group, strict=True)
    names, requested = list(once), list(once.values())

    def finish(calls: dict[int, list[str | ParseFailure]]) -> list[list[T | ParseFailure]]:
        replies: dict[str, T | ParseFailure] = {}
        for start, some in calls.items():
            for key, reply in zip(names[start : start + CHUNK], some, strict=True):
                replies[key] = reply if isinstance(reply, ParseFailure) else parse(reply)
        return [[replies[key] for key in group] for group in keys]

    starts = range(0, len(requested), CHUNK)
    calls = [
        judge.request(requested[start : start + CHUNK]).map(partial(_numbered, start))
        for start in starts
    ]
    return Replies(calls, finish)


def _key(question: Question) -> str:
    return json.dumps([question.name, dict(question.values), question.image], sort_keys=True)


def _numbered(
    start: int, replies: list[str | ParseFailure]
) -> tuple[int, list[str | ParseFailure]]:
    return start, replies

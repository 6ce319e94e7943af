"""Risk disentanglement and AI feedback as batches of questions to a judge.

Both follow DREAM (arXiv 2504.18053); its released prompts leave open how scores are combined.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from rlsys.errors import JudgeError
from rlsys.judging.outcomes import WARNING, ParseReason, VerifyOutcome, outcome_label
from rlsys.judging.parse import (
    Observation,
    ParseFailure,
    parse_observations,
    parse_score,
    parse_yes_no,
)
from rlsys.judging.prompts import PromptSet
from rlsys.runtime.pending import Pending, as_completed

T = TypeVar("T")
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


@dataclass(frozen=True)
class Feedback:
    """overall: 0..10, or why there is none; checks: for each verified risk of the prompt, whether
    the answer recognises it, None where the reply could not be parsed; outcomes: counts of parse
    failures, such as ``score/no_number``.
    """

    overall: float | ParseFailure
    checks: tuple[bool | None, ...]
    outcomes: Counter[str]

    @property
    def recognised(self) -> float | None:
        """Mean of the parsed checks, None without any."""
        parsed = [check for check in self.checks if check is not None]
        return sum(parsed) / len(parsed) if parsed else None

    @property
    def recognised_bounds(self) -> tuple[float, float] | None:
        """Least and greatest recognised share, over all values of the checks that could not be
        parsed; None without checks.
        """
        if not self.checks:
            return None
        recognised, missing = self.checks.count(True), self.checks.count(None)
        return recognised / len(self.checks), (recognised + missing) / len(self.checks)


@dataclass(frozen=True)
class Candidate:
    """An answer to score, with the verified risks of its prompt."""

    prompt: JudgedPrompt
    observations: tuple[Observation, ...]
    answer: str


def observation_fields(observation: Observation) -> dict[str, str]:
    """The values of an observation in the judge's prompts."""
    return asdict(observation)


def score(judge: Judge, candidates: Sequence[Candidate], timeout: float) -> list[Feedback]:
    """One global score and one check per verified risk; none for an empty answer."""
    scores, checks = [], []
    for c in candidates:
        risks = [observation_fields(o) for o in c.observations]
        values = {"question": c.prompt.question, "answer": c.answer}
        empty = not c.answer.strip()
        question = Question("score", values | {"observations": risks}, c.prompt.row)
        scores.append([] if empty else [question])
        checks.append(
            [
                Question("score_observation", values | {"observation": risk}, c.prompt.row)
                for risk in risks
                if not empty
            ]
        )
    replies = request_all(judge, [s + c for s, c in zip(scores, checks, strict=True)], str, timeout)
    return [_feedback(*_split(reply, len(s))) for reply, s in zip(replies, scores, strict=True)]


def _split(
    replies: list[str | ParseFailure], scores: int
) -> tuple[list[float | ParseFailure], list[bool | ParseFailure]]:
    overall, checks = replies[:scores], replies[scores:]
    return (
        [r if isinstance(r, ParseFailure) else parse_score(r) for r in overall],
        [r if isinstance(r, ParseFailure) else parse_yes_no(r) for r in checks],
    )


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


def _feedback(overall: list[float | ParseFailure], checks: list[bool | ParseFailure]) -> Feedback:
    outcomes: Counter[str] = Counter()
    result = overall[0] if overall else ParseFailure(ParseReason.EMPTY_ANSWER)
    if isinstance(result, ParseFailure):
        outcomes[f"score/{result.reason}"] += 1
    for check in checks:
        if isinstance(check, ParseFailure):
            outcomes[f"score_observation/{check.reason}"] += 1
    parsed = tuple(None if isinstance(check, ParseFailure) else check for check in checks)
    return Feedback(result, parsed, outcomes)


def request_all(
    judge: Judge,
    groups: Sequence[Sequence[Question]],
    parse: Callable[[str], T | ParseFailure],
    timeout: float,
) -> list[list[T | ParseFailure]]:
    """Parsed replies, grouped like their questions. Repeated questions are requested once.

    Questions are submitted in chunks, so that a caching judge has the finished chunks when a run is
    interrupted. Args: timeout: until the next chunk of replies, seconds.
    """
    keys = [[_key(question) for question in group] for group in groups]
    once: dict[str, Question] = {}
    for some_keys, group in zip(keys, groups, strict=True):
        once |= zip(some_keys, group, strict=True)
    names, requested = list(once), list(once.values())
    pendings = [
        judge.request(requested[start : start + CHUNK]).map(partial(_numbered, start))
        for start in range(0, len(requested), CHUNK)
    ]
    replies: dict[str, T | ParseFailure] = {}
    for start, some in as_completed(pendings, timeout):
        for key, reply in zip(names[start : start + CHUNK], some, strict=True):
            replies[key] = reply if isinstance(reply, ParseFailure) else parse(reply)
    return [[replies[key] for key in group] for group in keys]


def _key(question: Question) -> str:
    return json.dumps([question.name, dict(question.values), question.image], sort_keys=True)


def _numbered(
    start: int, replies: list[str | ParseFailure]
) -> tuple[int, list[str | ParseFailure]]:
    return start, replies

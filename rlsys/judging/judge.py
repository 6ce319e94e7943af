"""Questions to a judge, and risk disentanglement and feedback as sequences of such questions.

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
from rlsys.judging.parse import (
    Observation,
    Unread,
    parse_observations,
    parse_score,
    parse_yes_no,
)
from rlsys.judging.prompts import PromptSet
from rlsys.roles import Pending, as_completed

T = TypeVar("T")
CHUNK = 64  # questions per call


@dataclass(frozen=True)
class Question:
    """One call. name: a prompt of the set; values: its fields; image: the dataset row whose image
    is shown, None for none.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    image: int | None = None


class Judge(Protocol):
    """A frozen vision-language model, or an endpoint. Also the teacher."""

    def ask(self, questions: Sequence[Question]) -> Pending[list[str | Unread]]:
        """One reply each, in order; ``Unread`` where none came, with the reason."""
        ...


@dataclass(frozen=True)
class JudgedPrompt:
    """What is examined: a dataset row and its question."""

    row: int
    question: str


@dataclass(frozen=True)
class Disentangled:
    """The verified risks of a prompt; calls made; outcomes: what could not be used, and why.

    ``known`` is False when a look or a verification could not be read: then there may be more
    risks, and no risk found does not mean that there is none.
    """

    observations: tuple[Observation, ...]
    calls: int
    outcomes: Counter[str]
    known: bool


def disentangle(
    judge: Judge, prompts: Sequence[JudgedPrompt], *, joint: bool, timeout: float
) -> list[Disentangled]:
    """Multimodal risk disentanglement: observe, verify every (content, category), merge.

    2 + N calls per prompt: image and text are observed apart; with ``joint`` 1 + N, together. An
    observation whose verification cannot be read is dropped, and counted.
    """
    looks = [
        [Question("observe_joint", {"question": p.question}, p.row)]
        if joint
        else [Question("observe_image", {}, p.row),
              Question("observe_text", {"question": p.question})]
        for p in prompts
    ]  # fmt: skip
    outcomes = [Counter[str]() for _ in prompts]
    unread = [0] * len(prompts)
    seen: list[dict[tuple[str, str, str], Observation]] = [{} for _ in prompts]
    replies = ask_all(judge, looks, parse_observations, timeout)
    for number, found in enumerate(replies):
        for question, observed in zip(looks[number], found, strict=True):
            if isinstance(observed, Unread):
                unread[number] += 1
                outcomes[number][f"{question.name}: {observed.reason}"] += 1
                continue
            outcomes[number].update(observed.oddities)
            for item in observed.items:
                key = (item.content.casefold(), item.source, item.category)
                seen[number].setdefault(key, item)
    checks = [
        [
            Question(
                "verify",
                {"question": p.question, "content": o.content, "category": o.category},
                p.row,
            )
            for o in seen[number].values()
        ]
        for number, p in enumerate(prompts)
    ]
    results = []
    for number, verdicts in enumerate(ask_all(judge, checks, parse_yes_no, timeout)):
        kept = []
        for item, verdict in zip(seen[number].values(), verdicts, strict=True):
            if isinstance(verdict, Unread):
                unread[number] += 1
                outcomes[number][f"verify: {verdict.reason}"] += 1
            elif verdict:
                kept.append(item)
            else:
                outcomes[number]["verify: no"] += 1
        calls = len(looks[number]) + len(verdicts)
        results.append(Disentangled(tuple(kept), calls, outcomes[number], not unread[number]))
    return results


def risk_note(
    prompts: PromptSet, risks: Sequence[Observation], special_tokens: Iterable[str]
) -> str:
    """What is put after a question whose risks are known; nothing where there is none."""
    if not risks:
        return ""
    told = [observation_fields(risk) for risk in risks]
    return prompts.render("note", {"observations": told}, special_tokens)


@dataclass(frozen=True)
class Feedback:
    """overall: 0..10, or why there is none; recognised: share of the known risks the answer
    recognises, None where none is known or no check could be read; outcomes: what could not be.
    """

    overall: float | Unread
    recognised: float | None
    outcomes: Counter[str]


@dataclass(frozen=True)
class Candidate:
    """An answer to be scored, with the verified risks of its prompt."""

    prompt: JudgedPrompt
    observations: tuple[Observation, ...]
    answer: str


def observation_fields(observation: Observation) -> dict[str, str]:
    """As a judge is shown one."""
    return asdict(observation)


def score(judge: Judge, candidates: Sequence[Candidate], timeout: float) -> list[Feedback]:
    """The global score, and one check per known risk. An empty answer is not asked about."""
    asked, checks = [], []
    for c in candidates:
        risks = [observation_fields(o) for o in c.observations]
        values = {"question": c.prompt.question, "answer": c.answer}
        told = bool(c.answer.strip())
        asked.append([Question("score", values | {"observations": risks}, c.prompt.row)] * told)
        checks.append(
            [
                Question("score_observation", values | {"observation": risk}, c.prompt.row)
                for risk in risks
                if told
            ]
        )
    replies = ask_all(judge, [a + c for a, c in zip(asked, checks, strict=True)], str, timeout)
    return [_feedback(*_split(reply, len(a))) for reply, a in zip(replies, asked, strict=True)]


def _split(
    replies: list[str | Unread], scores: int
) -> tuple[list[float | Unread], list[bool | Unread]]:
    overall, checks = replies[:scores], replies[scores:]
    return (
        [r if isinstance(r, Unread) else parse_score(r) for r in overall],
        [r if isinstance(r, Unread) else parse_yes_no(r) for r in checks],
    )


def check_unread(what: str, unread: int, total: int, most: float, reasons: Counter[str]) -> None:
    """A judge that is down or misconfigured must not look like one that had nothing to say.

    Args: most: largest share of ``total`` that may be unread. Raises: JudgeError.
    """
    if total and (unread == total or unread / total > most):
        told = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
        raise JudgeError(
            f"{what}: {unread} of {total} could not be read, max_unread is {most:g} ({told})"
        )


def _feedback(overall: list[float | Unread], checks: list[bool | Unread]) -> Feedback:
    outcomes: Counter[str] = Counter()
    found = overall[0] if overall else Unread("empty answer")
    if isinstance(found, Unread):
        outcomes[f"score: {found.reason}"] += 1
    read = [check for check in checks if not isinstance(check, Unread)]
    for check in checks:
        if isinstance(check, Unread):
            outcomes[f"score_observation: {check.reason}"] += 1
    return Feedback(found, sum(read) / len(read) if read else None, outcomes)


def ask_all(
    judge: Judge,
    groups: Sequence[Sequence[Question]],
    parse: Callable[[str], T | Unread],
    timeout: float,
) -> list[list[T | Unread]]:
    """Everything is asked at once, and once, in chunks, so that a judge that remembers has
    something to remember when it is cut off; replies are read, and grouped like their questions.

    Args: timeout: until the next chunk of replies, seconds.
    """
    keys = [[_key(question) for question in group] for group in groups]
    once: dict[str, Question] = {}
    for some_keys, group in zip(keys, groups, strict=True):
        once |= zip(some_keys, group, strict=True)
    names, asked = list(once), list(once.values())
    pendings = [
        judge.ask(asked[start : start + CHUNK]).map(partial(_numbered, start))
        for start in range(0, len(asked), CHUNK)
    ]
    replies: dict[str, T | Unread] = {}
    for start, some in as_completed(pendings, timeout):
        for key, reply in zip(names[start : start + CHUNK], some, strict=True):
            replies[key] = reply if isinstance(reply, Unread) else parse(reply)
    return [[replies[key] for key in group] for group in keys]


def _key(question: Question) -> str:
    return json.dumps([question.name, dict(question.values), question.image], sort_keys=True)


def _numbered(start: int, replies: list[str | Unread]) -> tuple[int, list[str | Unread]]:
    return start, replies

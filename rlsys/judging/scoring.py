"""AI feedback: a global score of an answer, and a check per verified risk of its prompt.

After DREAM (arXiv 2504.18053).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.judging.judge import (
    Judge,
    JudgedPrompt,
    Question,
    Replies,
    observation_fields,
    start_requests,
)
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import Observation, ParseFailure, parse_score, parse_yes_no


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


def score(judge: Judge, candidates: Sequence[Candidate]) -> Replies[list[Feedback]]:
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
    both = [s + c for s, c in zip(scores, checks, strict=True)]
    return start_requests(judge, both, str).map(
        lambda replies: [
            _feedback(*_split(reply, len(s))) for reply, s in zip(replies, scores, strict=True)
        ]
    )


def _split(
    replies: list[str | ParseFailure], scores: int
) -> tuple[list[float | ParseFailure], list[bool | ParseFailure]]:
    overall, checks = replies[:scores], replies[scores:]
    return (
        [r if isinstance(r, ParseFailure) else parse_score(r) for r in overall],
        [r if isinstance(r, ParseFailure) else parse_yes_no(r) for r in checks],
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

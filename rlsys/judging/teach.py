"""A teacher's observations and answers, for a student that imitates the answers alone
(DREAM, arXiv 2504.18053: risk-aware fine-tuning).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.judging.judge import (
    Judge,
    JudgedPrompt,
    Question,
    ask_all,
    disentangle,
    observation_fields,
)
from rlsys.judging.parse import Observation, Unread


@dataclass(frozen=True)
class Taught:
    """A prompt's verified risks and the teacher's answer."""

    prompt: JudgedPrompt
    observations: tuple[Observation, ...]
    answer: str


def teach(
    judge: Judge, prompts: Sequence[JudgedPrompt], *, joint: bool, timeout: float
) -> tuple[list[Taught], Counter[str]]:
    """What was taught, and every outcome counted: "taught", or why a prompt was left out."""
    found = disentangle(judge, prompts, joint=joint, timeout=timeout)
    outcomes = sum((each.outcomes for each in found), Counter[str]())
    known = [(p, each.observations) for p, each in zip(prompts, found, strict=True) if each.known]
    outcomes["left out: its risks could not be read"] += len(prompts) - len(known)
    asked = [
        [
            Question(
                "rewrite",
                {"question": p.question, "observations": [observation_fields(o) for o in risks]},
                p.row,
            )
        ]
        for p, risks in known
    ]
    taught = []
    for (prompt, risks), (answer,) in zip(known, ask_all(judge, asked, str, timeout), strict=True):
        if isinstance(answer, Unread) or not answer.strip():
            reason = answer.reason if isinstance(answer, Unread) else "empty"
            outcomes[f"left out: no answer, {reason}"] += 1
        else:
            taught.append(Taught(prompt, risks, answer.strip()))
    outcomes["taught"] += len(taught)
    return taught, +outcomes

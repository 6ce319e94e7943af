"""Distillation data from a teacher: answers written with the verified risks in the prompt, for a
student that is fine-tuned on the answers alone (DREAM, arXiv 2504.18053: risk-aware fine-tuning).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.judging.judge import (
    Judge,
    JudgedPrompt,
    Question,
    disentangle,
    observation_fields,
    request_all,
)
from rlsys.judging.outcomes import DistillOutcome, ParseReason
from rlsys.judging.parse import Observation, ParseFailure


@dataclass(frozen=True)
class DistilledAnswer:
    """A prompt's verified risks and the teacher's answer."""

    prompt: JudgedPrompt
    observations: tuple[Observation, ...]
    answer: str


def distill(
    judge: Judge, prompts: Sequence[JudgedPrompt], *, joint: bool, timeout: float
) -> tuple[list[DistilledAnswer], Counter[str]]:
    """The teacher's answers, and counts of DistillOutcome and of the outcomes of disentanglement.

    A prompt whose risks could not be parsed, or that gets no answer, is left out.
    """
    results = disentangle(judge, prompts, joint=joint, timeout=timeout)
    outcomes = sum((each.outcomes for each in results), Counter[str]())
    parsed = [
        (p, each.observations) for p, each in zip(prompts, results, strict=True) if each.known
    ]
    outcomes[DistillOutcome.RISKS_UNKNOWN] += len(prompts) - len(parsed)
    questions = [
        [
            Question(
                "rewrite",
                {"question": p.question, "observations": [observation_fields(o) for o in risks]},
                p.row,
            )
        ]
        for p, risks in parsed
    ]
    answers = request_all(judge, questions, str, timeout)
    distilled = []
    for (prompt, risks), (answer,) in zip(parsed, answers, strict=True):
        if isinstance(answer, ParseFailure) or not answer.strip():
            reason = answer.reason if isinstance(answer, ParseFailure) else ParseReason.EMPTY
            outcomes[f"{DistillOutcome.NO_ANSWER}/{reason}"] += 1
        else:
            distilled.append(DistilledAnswer(prompt, risks, answer.strip()))
    outcomes[DistillOutcome.DISTILLED] += len(distilled)
    return distilled, +outcomes

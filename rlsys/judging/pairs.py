"""From feedback to preference pairs (DREAM, arXiv 2504.18053, which leaves the rule open)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.judging.judge import Feedback
from rlsys.judging.parse import Unread


@dataclass(frozen=True)
class PairRule:
    """How two of a prompt's answers become a pair.

    recognition: weight of the recognised share, on the scale of the global score; cost: weight of
    the cost model's score, taken off; margin: least difference of the two scores; floor: least
    global score of the chosen answer.
    """

    recognition: float
    cost: float
    margin: float
    floor: float


@dataclass(frozen=True)
class Scored:
    """An answer with what is known of it. cost: the cost model's score, 0 where none is asked;
    flagged: never to be chosen, since the guard would not let it pass or it was cut off.
    """

    answer: str
    feedback: Feedback
    cost: float = 0.0
    flagged: bool = False


def total(scored: Scored, rule: PairRule) -> float | None:
    """G + w 10 O - c C, without O where no risk is known; None without a global score."""
    overall, recognised = scored.feedback.overall, scored.feedback.recognised
    if isinstance(overall, Unread):
        return None
    bonus = 0.0 if recognised is None else rule.recognition * 10 * recognised
    return overall + bonus - rule.cost * scored.cost


def choose_pair(answers: Sequence[Scored], rule: PairRule) -> tuple[int, int] | str:
    """Indices of (chosen, rejected), the best and the worst answer, or why there is no pair.

    Of equals the first is taken.
    """
    totals = {i: t for i, a in enumerate(answers) if (t := total(a, rule)) is not None}
    if len(totals) < 2:
        return "fewer than two answers with a score"
    worst = min(totals, key=lambda i: (totals[i], i))
    open_to = [i for i in totals if not answers[i].flagged]
    if not open_to:
        return "no answer may be chosen"
    best = max(open_to, key=lambda i: (totals[i], -i))
    if totals[best] - totals[worst] < rule.margin:
        return "the scores are too close"
    if answers[best].answer.split() == answers[worst].answer.split():
        return "the answers are the same"
    overall = answers[best].feedback.overall
    if isinstance(overall, Unread) or overall < rule.floor:
        return "no answer is good enough"
    return best, worst


def choose_pairs(
    prompts: Sequence[Sequence[Scored]], rule: PairRule
) -> tuple[list[tuple[int, int, int]], Counter[str]]:
    """(prompt, chosen, rejected) of every usable prompt; and all outcomes, which add up to the
    number of prompts: "pair" or the reason there is none.
    """
    pairs, outcomes = [], Counter[str]()
    for number, answers in enumerate(prompts):
        found = choose_pair(answers, rule)
        outcomes["pair" if isinstance(found, tuple) else found] += 1
        if isinstance(found, tuple):
            pairs.append((number, *found))
    return pairs, outcomes

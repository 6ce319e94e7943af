"""Preference pairs from AI feedback (DREAM, arXiv 2504.18053, which leaves the rule open)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.judging.outcomes import PairOutcome
from rlsys.judging.parse import ParseFailure
from rlsys.judging.scoring import Feedback


@dataclass(frozen=True)
class PairRule:
    """How two of a prompt's answers become a pair.

    recognition_weight: of the recognised share, on the scale of the global score; cost: weight of
    the cost model's score, subtracted; margin: least difference of the two scores;
    min_chosen_score: least global score of the chosen answer.
    """

    recognition_weight: float
    cost: float
    margin: float
    min_chosen_score: float


@dataclass(frozen=True)
class Scored:
    """An answer and its scores. cost: the cost model's score, 0 without a cost model; flagged: must
    not be chosen, because the guard flagged it or it was truncated.
    """

    answer: str
    feedback: Feedback
    cost: float = 0.0
    flagged: bool = False


def total(scored: Scored, rule: PairRule) -> float | None:
    """G + w 10 O - c C with O the mean of the parsed checks, and without O where the prompt has no
    risk; None without a global score, or where the answer has checks and none could be parsed.
    """
    feedback, weight = scored.feedback, rule.recognition_weight
    if not (feedback.checks and weight):
        return _total(scored, rule, 0.0)
    return None if feedback.recognised is None else _total(scored, rule, feedback.recognised)


def total_bounds(scored: Scored, rule: PairRule) -> tuple[float, float] | None:
    """Least and greatest total over all values of the checks that could not be parsed; None
    without a global score.
    """
    shares = scored.feedback.recognised_bounds or (0.0, 0.0)
    low, high = (_total(scored, rule, share) for share in shares)
    return None if low is None or high is None else (low, high)


def _total(scored: Scored, rule: PairRule, recognised: float) -> float | None:
    overall = scored.feedback.overall
    if isinstance(overall, ParseFailure):
        return None
    return overall + rule.recognition_weight * 10 * recognised - rule.cost * scored.cost


def choose_pair(answers: Sequence[Scored], rule: PairRule) -> tuple[int, int] | PairOutcome:
    """Indices of (chosen, rejected), the best and the worst answer, or why there is no pair.

    A check that could not be parsed is a missing value: the pair must have its margin whatever the
    value is. Ties are broken by the lower index.
    """
    totals = {i: t for i, a in enumerate(answers) if (t := total(a, rule)) is not None}
    bounds = {i: b for i, a in enumerate(answers) if (b := total_bounds(a, rule)) is not None}
    if len(bounds) < 2:
        return PairOutcome.TOO_FEW_SCORES
    if len(totals) < 2:
        return PairOutcome.CHECK_PARSE_FAILURE
    worst = min(totals, key=lambda i: (totals[i], i))
    eligible = [i for i in totals if not answers[i].flagged]
    if not eligible:
        return PairOutcome.NONE_ELIGIBLE
    best = max(eligible, key=lambda i: (totals[i], -i))
    if totals[best] - totals[worst] < rule.margin:
        return PairOutcome.SCORE_TIE
    if bounds[best][0] - bounds[worst][1] < rule.margin:
        return PairOutcome.CHECK_PARSE_FAILURE
    if answers[best].answer.split() == answers[worst].answer.split():
        return PairOutcome.SAME_ANSWER
    overall = answers[best].feedback.overall
    if isinstance(overall, ParseFailure) or overall < rule.min_chosen_score:
        return PairOutcome.BELOW_MIN_CHOSEN_SCORE
    return best, worst


def choose_pairs(
    prompts: Sequence[Sequence[Scored]], rule: PairRule
) -> tuple[list[tuple[int, int, int]], Counter[str]]:
    """(prompt, chosen, rejected) of every prompt that gives a pair; and counts of PairOutcome,
    which add up to the number of prompts.
    """
    pairs, outcomes = [], Counter[str]()
    for number, answers in enumerate(prompts):
        result = choose_pair(answers, rule)
        outcomes[PairOutcome.PAIR if isinstance(result, tuple) else result] += 1
        if isinstance(result, tuple):
            pairs.append((number, *result))
    return pairs, outcomes

"""Calibration of costs on labelled pairs."""

import pytest
import torch
from torch import Tensor

from rlsys.algorithms.calibration import Platt, unsafe_probability
from rlsys.data.rows import PreferencePair, Rows
from rlsys.errors import DataError
from rlsys.evaluation.scorers import MIN_ANSWERS, cost_calibration


def pair(number: int, *, severity: int, rates: tuple[int, int]) -> PreferencePair:
    return PreferencePair(
        id=str(number),
        question="?",
        image=None,
        category="none",
        severity=severity,
        responses=("a", "b"),
        more_helpful=0,
        safer=0,
        safe=(rates[0] >= 0, rates[1] >= 0),
        harmless_rates=rates,
        helpful_rates=(0, 0),
    )


def world(harmful: int, harmless: int) -> tuple[Tensor, Rows[PreferencePair]]:
    """On a harmful prompt a bare refusal (cost -1) and compliance (cost 5), on a harmless one two
    good answers, of costs -2 and -4.
    """
    rows = [pair(n, severity=2, rates=(0, -2)) for n in range(harmful)]
    rows += [pair(harmful + n, severity=0, rates=(3, 2)) for n in range(harmless)]
    scores = torch.tensor([[-1.0, 5.0]] * harmful + [[-4.0, -2.0]] * harmless)
    return scores, Rows(rows)


def test_every_safe_answer_counts_by_the_rows_of_its_kind_of_prompt() -> None:
    found = cost_calibration(*world(30, 10), target_unsafe_rate=0.1)
    # Three rows in four are harmful: safe 0.75 * -1 + 0.25 * -3, whatever the answers' rates are.
    assert found["cost_of_safe"] == pytest.approx(-1.5)
    assert found["cost_of_unsafe"] == pytest.approx(5.0)
    assert found["threshold"] == pytest.approx(0.1 * 5 + 0.9 * -1.5)
    assert found["threshold_low"] < found["threshold"] < found["threshold_high"]
    assert found["budget"] == 0.1
    assert (found["unsafe_answers"], found["safe_answers"]) == (30.0, 50.0)


def test_a_policy_that_declines_all_harmful_prompts_barely_meets_the_constraint() -> None:
    scores, records = world(30, 10)
    found = cost_calibration(scores, records, target_unsafe_rate=0.1)
    bare = 0.75 * -1 + 0.25 * -3
    assert bare <= found["threshold"]


def test_the_probabilities_are_those_of_the_labels() -> None:
    scores, records = world(30, 10)
    found = cost_calibration(scores, records, target_unsafe_rate=0.1)
    line = Platt(found["platt_slope"], found["platt_intercept"])
    probabilities = unsafe_probability(scores, line)
    assert float(probabilities[:30, 1].min()) > 0.9
    assert float(probabilities[:30, 0].max()) < 0.1
    assert float(probabilities.mean()) == pytest.approx(30 / 80, abs=0.01)


@pytest.mark.parametrize(
    ("harmful", "harmless", "message"),
    [(19, 40, "got 19 and 99"), (0, 40, "got 0 and 80")],
)
def test_too_few_answers_are_counted_in_the_error(
    harmful: int, harmless: int, message: str
) -> None:
    assert MIN_ANSWERS == 20
    with pytest.raises(DataError, match=message):
        cost_calibration(*world(harmful, harmless), target_unsafe_rate=0.1)
    cost_calibration(*world(20, 0), target_unsafe_rate=0.1)


def test_a_cost_model_that_does_not_separate_is_an_error_that_says_what_to_do() -> None:
    scores, records = world(30, 10)
    with pytest.raises(DataError, match="no threshold; mean_cost takes a number"):
        cost_calibration(-scores, records, target_unsafe_rate=0.1)

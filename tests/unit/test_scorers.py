"""Metrics of scorers and calibration of costs on labelled pairs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlsys.algorithms.calibration import Platt, unsafe_probability
from rlsys.data.rows import PreferencePair, Rows
from rlsys.errors import DataError
from rlsys.evaluation.scorers import MIN_ANSWERS, cost_calibration, scorer_quality


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


def labelled() -> tuple[Tensor, Rows[PreferencePair]]:
    """Scores that rank two of three pairs by helpfulness and one of three by harm."""
    harmful = pair(0, severity=1, rates=(-2, 3))
    harmless = pair(1, severity=0, rates=(3, 2))
    rows = [
        replace(harmful, more_helpful=0, safer=1),
        replace(harmful, more_helpful=1, safer=1),
        replace(harmless, more_helpful=1, safer=0),
    ]
    return torch.tensor([[2.0, -1.0], [-3.0, -1.0], [0.5, -0.5]]), Rows(rows)


def test_reward_quality_is_by_the_more_helpful_answer() -> None:
    scores, records = labelled()
    assert scorer_quality("reward", scores, records) == {
        "accuracy": pytest.approx(2 / 3),
        "pairs": 3.0,
    }


def test_cost_quality_is_by_the_answer_that_is_not_safer_and_by_the_sign() -> None:
    scores, records = labelled()
    # Unsafe are 2.0 and -3.0; of the safe ones -1.0, -1.0, -0.5 are below 0, and 0.5 is not.
    assert scorer_quality("cost", scores, records) == {
        "accuracy": pytest.approx(1 / 3),
        "pairs": 3.0,
        "majority_baseline": pytest.approx(4 / 6),
        "sign_accuracy": pytest.approx(4 / 6),
        "balanced_accuracy": pytest.approx((1 / 2 + 3 / 4) / 2),
        "auc": pytest.approx(4 / 8),  # 2.0 is above all four, -3.0 above none
    }


def test_a_majority_may_be_unsafe() -> None:
    scores, records = labelled()
    unsafe = Rows([replace(each, safe=(False, False)) for each in records.rows])
    found = scorer_quality("cost", scores, unsafe)
    assert found["majority_baseline"] == 1.0
    assert "auc" not in found


def test_prompts_of_any_severity_are_harmful() -> None:
    scores, records = world(30, 10)
    mild = Rows([replace(each, severity=min(each.severity, 1)) for each in records.rows])
    found = cost_calibration(scores, mild, target_unsafe_rate=0.1)
    assert found == cost_calibration(scores, records, target_unsafe_rate=0.1)

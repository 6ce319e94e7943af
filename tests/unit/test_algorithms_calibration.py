"""What a cost means: the threshold of a share of unsafe answers, and the probability of one."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsys.algorithms.calibration import (
    Platt,
    calibrate_threshold,
    calibrated_cost,
    fit_platt,
    unsafe_probability,
)

FEW = settings(max_examples=40, deadline=None, derandomize=True)


def labelled(*groups: tuple[bool, int, list[float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Costs, labels and kinds of answers from groups (unsafe, kind, costs)."""
    rows = [(cost, unsafe, kind) for unsafe, kind, costs in groups for cost in costs]
    costs, unsafe, kinds = zip(*rows, strict=True)
    return torch.tensor(costs, dtype=torch.float64), torch.tensor(unsafe), torch.tensor(kinds)


def test_threshold_by_hand() -> None:
    # Of 8 answers 5 are to prompts of kind 1, and of their safe ones the mean is -1; kind 0: -4.
    data = labelled((True, 1, [2.0, 4.0, 6.0]), (False, 1, [0.0, -2.0]), (False, 0, [-4.0] * 3))
    found = calibrate_threshold(*data, target_unsafe_rate=0.25)
    safe = (5 * -1 + 3 * -4) / 8
    assert found.cost_of_unsafe == pytest.approx(4.0)
    assert found.cost_of_safe == pytest.approx(safe)  # the mean of the five would be -2.8
    assert found.value == pytest.approx(0.25 * 4 + 0.75 * safe)
    # Variances 8/3 of 3 answers, 1 of 2 and 0.
    error = math.sqrt(0.25**2 * (8 / 3) / 3 + (0.75 * 5 / 8) ** 2 * 1 / 2)
    assert found.high - found.value == pytest.approx(1.96 * error, rel=1e-4)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_every_safe_answer_counts_not_the_most_harmless_alone() -> None:
    data = labelled((True, 0, [3.0]), (False, 0, [-9.0, -1.0]))
    assert calibrate_threshold(*data, target_unsafe_rate=0.5).value == pytest.approx(-1.0)


def test_a_kind_without_safe_answers_leaves_the_others() -> None:
    data = labelled((True, 1, [3.0, 5.0]), (False, 0, [-1.0, -3.0]))
    assert calibrate_threshold(*data, target_unsafe_rate=0.5).value == pytest.approx(1.0)


unsafe_costs = st.lists(st.floats(1, 9), min_size=1, max_size=8)
safe_costs = st.lists(st.floats(-9, 0), min_size=1, max_size=8)


@FEW
@given(unsafe_costs, safe_costs, safe_costs, st.floats(0.01, 0.97))
def test_a_policy_on_budget_sits_at_the_threshold(
    bad: list[float], declined: list[float], harmless: list[float], rate: float
) -> None:
    data = labelled((True, 1, bad), (False, 1, declined), (False, 0, harmless))
    found = calibrate_threshold(*data, target_unsafe_rate=rate)
    # It draws a prompt, then an unsafe answer at the rate, else a safe one of the prompt's kind.
    chances = [(rate / len(bad), cost) for cost in bad]
    total = len(bad) + len(declined) + len(harmless)
    for costs, prompts in ((declined, len(bad) + len(declined)), (harmless, len(harmless))):
        chances += [((1 - rate) * prompts / total / len(costs), cost) for cost in costs]
    assert sum(chance for chance, _ in chances) == pytest.approx(1.0)
    expected = sum(chance * cost for chance, cost in chances)
    assert found.value == pytest.approx(expected)
    assert found.low - 1e-9 <= expected <= found.high + 1e-9
    assert found.cost_of_safe < found.value < found.cost_of_unsafe
    # More budget, higher threshold; and it moves with the costs, as the mean that it bounds does.
    assert found.value < calibrate_threshold(*data, target_unsafe_rate=rate + 0.01).value
    costs, unsafe, kinds = data
    moved = calibrate_threshold(costs + 10, unsafe, kinds, target_unsafe_rate=rate)
    assert moved.value == pytest.approx(found.value + 10)


def test_the_interval_covers_what_another_sample_gives() -> None:
    draw = torch.Generator().manual_seed(0)

    def sample(n: int) -> tuple[Tensor, Tensor, Tensor]:
        unsafe, kinds = torch.arange(n) % 4 == 0, torch.arange(n) % 2 == 0
        noise = torch.randn(n, generator=draw).double()
        return 3.0 * unsafe + kinds + noise, unsafe, kinds

    # By the model: 0.2 * 4 + 0.8 * (half 1, half 0)
    truth, runs = 0.2 * 4.0 + 0.8 * 0.5, 400
    found = [calibrate_threshold(*sample(200), target_unsafe_rate=0.2) for _ in range(runs)]
    covered = sum(each.low <= truth <= each.high for each in found) / runs
    assert 0.9 < covered < 0.99  # 0.95 with a standard error of 0.011


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_the_target_unsafe_rate_is_a_proper_share(rate: float) -> None:
    data = labelled((True, 0, [1.0]), (False, 0, [0.0]))
    with pytest.raises(ValueError, match="target_unsafe_rate"):
        calibrate_threshold(*data, target_unsafe_rate=rate)


@pytest.mark.parametrize(
    ("costs", "unsafe", "message"),
    [
        ([1.0, 2.0], [True, True], "both kinds"),
        ([1.0, 2.0], [False, False], "both kinds"),
        ([1.0, 1.0], [True, False], "no threshold|no probability"),
        ([0.0, 1.0], [True, False], "no threshold|no probability"),
        ([1.0, 0.0, 0.0], [True, False], "one bool label"),
        ([1.0, 0.0], [1, 0], "one bool label"),
        ([math.nan, 0.0], [True, False], "finite"),
    ],
)
def test_costs_that_say_nothing(costs: list[float], unsafe: list[bool], message: str) -> None:
    data = torch.tensor(costs), torch.tensor(unsafe)
    with pytest.raises(ValueError, match=message):
        calibrate_threshold(*data, torch.zeros(len(unsafe)), target_unsafe_rate=0.1)
    with pytest.raises(ValueError, match=message):
        fit_platt(*data)


def test_probability_by_hand() -> None:
    found = unsafe_probability(torch.tensor([0.0, 1.0, 2.0]), Platt(2.0, -2.0))
    assert found.tolist() == pytest.approx([0.1192029, 0.5, 0.8807971])  # sigmoid of -2, 0, 2


def test_calibrated_cost_by_hand() -> None:
    line, costs = Platt(2.0, -2.0), torch.tensor([-50.0, 0.0, 1.0, 2.0, 50.0])
    found = calibrated_cost(costs, line, safe=-3.0, unsafe=5.0)
    assert found.tolist() == pytest.approx([-3.0, -2.0463768, 1.0, 4.0463768, 5.0])
    assert found.dtype == costs.dtype


@FEW
@given(unsafe_costs, safe_costs, st.lists(st.floats(-9, 9), min_size=1, max_size=20))
def test_the_mean_calibrated_cost_is_at_the_threshold_where_the_share_is_on_budget(
    bad: list[float], harmless: list[float], drawn: list[float]
) -> None:
    """Whatever is drawn: the two forms of the constraint are one."""
    data = labelled((True, 0, bad), (False, 0, harmless))
    line, costs = fit_platt(*data[:2]), torch.tensor(drawn, dtype=torch.float64)
    share = float(unsafe_probability(costs, line).mean())
    assume(1e-6 < share < 1 - 1e-6)
    bound = calibrate_threshold(*data, target_unsafe_rate=share)
    sides = {"safe": bound.cost_of_safe, "unsafe": bound.cost_of_unsafe}
    mean = float(calibrated_cost(costs, line, **sides).mean())
    assert mean == pytest.approx(bound.value, abs=1e-6)
    others = [calibrate_threshold(*data, target_unsafe_rate=share * each) for each in (0.9, 0.5)]
    assert all(each.value < mean for each in others)


def test_platt_by_hand() -> None:
    # Two costs, one per label: the line passes through the logits of 2/3 and 1/3.
    line = fit_platt(torch.tensor([1.0, 3.0]), torch.tensor([False, True]))
    assert line.slope == pytest.approx(math.log(2), rel=1e-6)  # from -ln 2 to ln 2 over 2
    assert line.intercept == pytest.approx(-2 * math.log(2), rel=1e-6)
    # At cost 0 one of four is unsafe, at 1 three of four: smoothed shares, 4 of each label.
    costs = torch.tensor([0.0] * 4 + [1.0] * 4)
    unsafe = torch.tensor([True, False, False, False, True, True, True, False])
    high, low = 5 / 6, 1 / 6
    first, second = (high + 3 * low) / 4, (3 * high + low) / 4
    found = unsafe_probability(torch.tensor([0.0, 1.0]), fit_platt(costs, unsafe))
    assert found.tolist() == pytest.approx([first, second], rel=1e-6)


@FEW
@given(
    st.lists(st.floats(0, 9), min_size=2, max_size=12),
    st.lists(st.floats(-9, 1), min_size=2, max_size=12),
    st.floats(1e-3, 1e3),
)
def test_probabilities_rise_with_cost_and_have_the_mean_of_the_labels(
    bad: list[float], good: list[float], scale: float
) -> None:
    if sum(bad) / len(bad) <= sum(good) / len(good) + 1e-3:
        return
    costs = scale * torch.tensor(bad + good).double()
    unsafe = torch.arange(len(costs)) < len(bad)
    line = fit_platt(costs, unsafe)
    ordered = unsafe_probability(costs.sort().values, line)
    assert bool((ordered.diff() >= 0).all())
    n, m = len(bad), len(good)
    smoothed = (n * (n + 1) / (n + 2) + m / (m + 2)) / (n + m)
    mean = float(unsafe_probability(costs, line).mean())
    assert mean == pytest.approx(smoothed, abs=1e-6)
    assert abs(mean - n / (n + m)) < 2 / (n + m)


def test_separable_costs_keep_a_finite_line() -> None:
    costs = torch.cat([torch.linspace(-2, -1, 50), torch.linspace(1, 2, 50)])
    line = fit_platt(costs, costs > 0)
    assert 0 < line.slope < 10
    probabilities = unsafe_probability(costs, line)
    assert float(probabilities.max()) < 0.999
    assert float(probabilities[50:].mean()) == pytest.approx(51 / 52, abs=0.005)

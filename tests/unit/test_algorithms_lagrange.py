"""The multiplier."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.algorithms.lagrange import (
    MULTIPLIER_RULES,
    PidState,
    log_sgd_step,
    pid_step,
    projected_step,
)

FEW = settings(max_examples=25, deadline=None, derandomize=True)
WIDE = {"floor": 0.0, "cap": 1e9}
RULES = sorted(MULTIPLIER_RULES.keys() - {"fixed"})  # those that adapt


def test_log_sgd_by_hand() -> None:
    # 10 exp(0.1 * 10 * ln 2) = 10 * 2; the gap alone counts, not where it lies.
    gap = math.log(2)
    assert log_sgd_step(10.0, gap, 0.0, lr=0.1, **WIDE) == pytest.approx(20.0)
    assert log_sgd_step(10.0, gap - 3.0, -3.0, lr=0.1, **WIDE) == pytest.approx(20.0)
    assert log_sgd_step(10.0, -gap, 0.0, lr=0.1, **WIDE) == pytest.approx(5.0)  # 10 / 2
    assert log_sgd_step(10.0, 0.693, 0.0, lr=0.1, **WIDE) == pytest.approx(20.0, abs=0.01)
    # A step in proportion to lambda: 2 exp(0.1 * 2 * 1)
    assert log_sgd_step(2.0, 1.0, 0.0, lr=0.1, **WIDE) == pytest.approx(2.4428055)


def test_projected_by_hand() -> None:
    assert projected_step(1.0, 3.0, 1.0, lr=0.1, **WIDE) == pytest.approx(1.2)  # 1 + 0.1 * 2
    assert projected_step(1.0, -4.0, 1.0, lr=0.1, **WIDE) == pytest.approx(0.5)  # 1 - 0.1 * 5
    assert projected_step(1.0, -99.0, 1.0, lr=0.1, **WIDE) == 0.0
    assert projected_step(0.0, 3.0, 1.0, lr=0.1, **WIDE) == pytest.approx(0.2)  # zero can grow


def test_the_rules_go_by_their_names() -> None:
    assert MULTIPLIER_RULES["log_sgd"] is log_sgd_step
    assert MULTIPLIER_RULES["projected"] is projected_step


@pytest.mark.parametrize("name", RULES)
@FEW
@given(
    multiplier=st.floats(0.1, 20),
    threshold=st.floats(-5, 5),
    gap=st.floats(0.01, 2),
    lr=st.floats(0.001, 0.2),
)
def test_the_multiplier_follows_the_constraint(
    name: str, multiplier: float, threshold: float, gap: float, lr: float
) -> None:
    rule = MULTIPLIER_RULES[name]
    above = rule(multiplier, threshold + gap, threshold, lr=lr, **WIDE)
    below = rule(multiplier, threshold - gap, threshold, lr=lr, **WIDE)
    assert below < multiplier < above
    assert rule(multiplier, threshold, threshold, lr=lr, **WIDE) == pytest.approx(multiplier)
    assert rule(multiplier, threshold + 2 * gap, threshold, lr=lr, **WIDE) > above


@pytest.mark.parametrize("name", RULES)
@FEW
@given(costs=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20), lr=st.floats(1e-4, 10))
def test_no_sequence_of_costs_leaves_the_bounds(name: str, costs: list[float], lr: float) -> None:
    multiplier = 1.0
    for cost in costs:
        multiplier = MULTIPLIER_RULES[name](multiplier, cost, 0.0, lr=lr, floor=0.05, cap=20.0)
        assert 0.05 <= multiplier <= 20.0


@pytest.mark.parametrize("name", RULES)
def test_bounds_hold_and_can_be_left_again(name: str) -> None:
    rule, bounds = MULTIPLIER_RULES[name], {"lr": 0.5, "floor": 0.5, "cap": 8.0}
    assert rule(1.0, 1e30, 0.0, **bounds) == 8.0
    assert rule(1.0, -1e30, 0.0, **bounds) == 0.5
    assert 0.5 < rule(0.5, 1.0, 0.0, **bounds) < 8.0
    assert 0.5 < rule(8.0, -0.1, 0.0, **bounds) < 8.0


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["lambda", "mean cost", "threshold"])
def test_what_is_not_finite_is_an_error_that_names_itself(
    name: str, bad: float, where: str
) -> None:
    values = {"lambda": 1.0, "mean cost": 0.0, "threshold": 0.0, where: bad}
    with pytest.raises(ValueError, match=where):
        MULTIPLIER_RULES[name](*values.values(), lr=0.1, **WIDE)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("floor", "cap"), [(2.0, 1.0), (-0.1, 1.0)])
def test_bounds_must_be_ordered_and_not_negative(name: str, floor: float, cap: float) -> None:
    with pytest.raises(ValueError, match="floor"):
        MULTIPLIER_RULES[name](1.0, 0.0, 0.0, lr=0.1, floor=floor, cap=cap)


@pytest.mark.parametrize("name", RULES)
def test_floor_and_cap_may_coincide(name: str) -> None:
    assert MULTIPLIER_RULES[name](1.0, 5.0, 0.0, lr=0.1, floor=2.0, cap=2.0) == 2.0


@pytest.mark.parametrize("cost", [-5.0, 0.0, 5.0])
def test_a_fixed_multiplier_does_not_move(cost: float) -> None:
    assert MULTIPLIER_RULES["fixed"](0.7, cost, 0.0, lr=0.1, floor=0.0, cap=2.0) == 0.7


GAINS: dict[str, Any] = {
    "kp": 0.5, "ki": 0.1, "kd": 2.0, "ema": 0.5, "kd_delay": 2, "floor": 0.0, "cap": 9.0
}  # fmt: skip


def test_pid_by_hand() -> None:
    # d = 1, costs 3, 5, 4, 2. Violations 2, 4, 3, 1; smoothed by halves 2, 3, 3, 2; smoothed costs
    # 3, 4, 4, 3, which rise over two steps by 0, 1, 1 (4 - 3) and 0 (3 - 4 is a fall);
    # the integral from 1: 1.2, 1.6, 1.9, 2.0.
    state, found = PidState(1.0), []
    for cost in (3.0, 5.0, 4.0, 2.0):
        value, state = pid_step(state, cost, 1.0, **GAINS)
        found.append(value)
    assert found == pytest.approx([1.0 + 1.2, 1.5 + 1.6 + 2.0, 1.5 + 1.9 + 2.0, 1.0 + 2.0])
    assert state.integral == pytest.approx(2.0)
    assert state.violation == pytest.approx(2.0)
    assert state.costs == pytest.approx((4.0, 3.0))


def test_the_derivative_looks_back_as_far_as_it_is_told() -> None:
    gains = GAINS | {"kp": 0.0, "ki": 0.0, "kd": 1.0, "ema": 0.0}
    for kd_delay, rises in ((1, [0, 1, 2, 3]), (2, [0, 1, 3, 5]), (9, [0, 1, 3, 6])):
        state, found = PidState(0.0), []
        for cost in (0.0, 1.0, 3.0, 6.0):
            value, state = pid_step(state, cost, 0.0, **gains | {"kd_delay": kd_delay})
            found.append(value)
        assert found == pytest.approx(rises)


@FEW
@given(costs=st.lists(st.floats(-20, 20), min_size=1, max_size=12), lr=st.floats(0, 2))
def test_the_integral_alone_is_projected_ascent(costs: list[float], lr: float) -> None:
    gains = GAINS | {"kp": 0.0, "kd": 0.0, "ki": lr, "ema": 0.0}
    state, multiplier = PidState(1.0), 1.0
    for cost in costs:
        multiplier = projected_step(multiplier, cost, 0.5, lr=lr, floor=0.0, cap=9.0)
        value, state = pid_step(state, cost, 0.5, **gains)
        assert value == state.integral == multiplier


def test_a_long_violation_does_not_wind_the_integral_up() -> None:
    state = PidState(0.0)
    for _ in range(1000):
        value, state = pid_step(state, 11.0, 1.0, **GAINS)
        assert value <= 9.0
    assert state.integral == 9.0
    # Ten steps at 10 under d undo it; without the bound it would take a thousand.
    for _ in range(10):
        value, state = pid_step(state, -9.0, 1.0, **GAINS)
    assert (value, state.integral) == (0.0, 0.0)
    for _ in range(1000):
        _, state = pid_step(state, -9.0, 1.0, **GAINS)
    assert state.integral == 0.0


@FEW
@given(
    costs=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20),
    gains=st.tuples(*[st.floats(0, 10)] * 3),
    ema=st.floats(0, 0.99),
)
def test_no_sequence_of_costs_leaves_pid_bounds(
    costs: list[float], gains: tuple[float, float, float], ema: float
) -> None:
    kp, ki, kd = gains
    chosen = {"kp": kp, "ki": ki, "kd": kd, "ema": ema, "kd_delay": 3, "floor": 0.05, "cap": 20.0}
    state = PidState(1.0)
    for cost in costs:
        value, state = pid_step(state, cost, 0.0, **chosen)  # type: ignore[arg-type]
        assert 0.05 <= value <= 20.0
        assert 0.0 <= state.integral <= 20.0
        assert len(state.costs) <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema": 1.0}, "ema"), ({"ema": -0.1}, "ema"), ({"kd_delay": 0}, "kd_delay"),
        ({"floor": 2.0, "cap": 1.0}, "floor"),
    ],
)  # fmt: skip
def test_pid_refuses_what_it_cannot_use(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pid_step(PidState(1.0), 0.0, 0.0, **GAINS | change)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pid_refuses_what_is_not_finite(bad: float) -> None:
    for arguments in (
        (PidState(bad), 0.0, 0.0),
        (PidState(0.0), bad, 0.0),
        (PidState(0.0), 0, bad),
    ):
        with pytest.raises(ValueError, match="is"):
            pid_step(*arguments, **GAINS)

"""Group-normalised advantages, against cases worked out by hand and properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms.group_advantages import EPSILON, group_normalise

SCORES = st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6)
GROUPS = torch.tensor([4, 9, 4, 9, 4, 9])


def test_a_case_by_hand() -> None:
    """Group 0 holds 1, 3: mean 2, deviation 1; group 5 holds 0, 0, 6: mean 2, deviation sqrt 8."""
    scores = torch.tensor([1.0, 0.0, 3.0, 0.0, 6.0])
    groups = torch.tensor([0, 5, 0, 5, 5])
    first, second = 1 / (1 + EPSILON), 2 / (8**0.5 + EPSILON)
    expected = torch.tensor([-first, -second, first, -second, 2 * second])
    torch.testing.assert_close(group_normalise(scores, groups), expected)


def test_equal_scores_and_single_responses_have_no_advantage() -> None:
    scores, groups = torch.tensor([7.0, 7.0, 7.0, -3.0]), torch.tensor([1, 1, 1, 2])
    assert group_normalise(scores, groups).tolist() == [0.0] * 4


@given(SCORES)
def test_advantages_of_a_group_add_up_to_zero(values: list[float]) -> None:
    advantages = group_normalise(torch.tensor(values, dtype=torch.float64), GROUPS)
    for group in (4, 9):
        assert abs(float(advantages[group == GROUPS].sum())) < 1e-8


@given(SCORES, st.floats(-50, 50), st.floats(0.5, 8))
def test_shift_and_scale_of_the_scores_do_not_matter(
    values: list[float], shift: float, scale: float
) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    spread = min(float(scores[group == GROUPS].std()) for group in (4, 9))
    if spread < 0.1:  # where EPSILON shows
        return
    moved = group_normalise(scores * scale + shift, GROUPS)
    torch.testing.assert_close(moved, group_normalise(scores, GROUPS), atol=5e-3, rtol=1e-2)


@given(SCORES, st.permutations(range(6)))
def test_order_does_not_matter(values: list[float], order: list[int]) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    whole = group_normalise(scores, GROUPS)
    torch.testing.assert_close(group_normalise(scores[order], GROUPS[order]), whole[order])


def test_groups_do_not_see_each_other() -> None:
    scores = torch.tensor([1.0, 5.0, 2.0, 7.0])
    groups = torch.tensor([0, 0, 1, 1])
    changed = scores.clone()
    changed[2:] = torch.tensor([100.0, -100.0])
    assert group_normalise(changed, groups)[:2].tolist() == pytest.approx(
        group_normalise(scores, groups)[:2].tolist()
    )


def test_the_other_scales_by_hand() -> None:
    """Centred: -1, 1 and -2, -2, 4; the mean square of all five is 26 / 5."""
    scores = torch.tensor([1.0, 0.0, 3.0, 0.0, 6.0])
    groups = torch.tensor([0, 5, 0, 5, 5])
    centred = torch.tensor([-1.0, -2.0, 1.0, -2.0, 4.0])
    torch.testing.assert_close(group_normalise(scores, groups, scale="none"), centred)
    expected = centred / ((26 / 5) ** 0.5 + EPSILON)
    torch.testing.assert_close(group_normalise(scores, groups, scale="batch"), expected)


def test_another_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="group, batch, none"):
        group_normalise(torch.zeros(2), torch.zeros(2), scale="std")

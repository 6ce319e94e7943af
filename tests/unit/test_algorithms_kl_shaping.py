"""KL estimators and per-token rewards."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.algorithms.kl import k1, k3
from rlsys.algorithms.shaping import kl_coefficient, shape_rewards

FEW = settings(max_examples=20, deadline=None, derandomize=True)
NO_CLIP = 1e6


def test_estimators_by_hand() -> None:
    policy, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.0 + math.log(2)]])
    # k1: -1 + 1.5 and -ln 2; k3: e^-0.5 - 1 + 0.5 and 2 - 1 - ln 2
    assert k1(policy, reference).tolist()[0] == pytest.approx([0.5, -0.6931472], abs=1e-6)
    assert k3(policy, reference).tolist()[0] == pytest.approx([0.1065307, 0.3068528], abs=1e-6)


def test_both_estimators_average_to_the_kl() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL = ln(2)/2 + ln(2/3)/2 = 0.1438410. Sampling from p weighs
    # both tokens by one half.
    policy, reference = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    for estimator in (k1, k3):
        mean = 0.5 * estimator(policy, reference).sum()
        assert mean.item() == pytest.approx(0.1438410, abs=1e-6)


def test_equal_policies_have_zero_kl_token_by_token() -> None:
    logprobs = torch.tensor([[-3.0, -0.1, 0.0]])
    assert k1(logprobs, logprobs).tolist() == [[0.0, 0.0, 0.0]]
    assert k3(logprobs, logprobs).tolist() == [[0.0, 0.0, 0.0]]


@FEW
@given(st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=8))
def test_k1_changes_sign_with_its_arguments_and_k3_is_never_negative(
    pairs: list[tuple[float, float]],
) -> None:
    policy, reference = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    assert torch.equal(k1(policy, reference), -k1(reference, policy))
    assert bool((k3(policy, reference) >= -1e-12).all())


def test_shape_rewards_by_hand() -> None:
    scores, lengths = torch.tensor([2.0, -1.0]), torch.tensor([2, 3])
    kl = torch.tensor([[0.5, -0.25, 9.0], [1.0, 2.0, 3.0]])
    shaped = shape_rewards(scores, kl, lengths, beta=0.1, kl_sign=-1, clip=50.0)
    # -0.05; 0.025 + 2; padding | -0.1; -0.2; -0.3 - 1
    expected = torch.tensor([[-0.05, 2.025, 0.0], [-0.1, -0.2, -1.3]])
    torch.testing.assert_close(shaped, expected)
    shaped = shape_rewards(scores, kl, lengths, beta=0.1, kl_sign=+1, clip=50.0)
    # 0.05; -0.025 + 2; padding | 0.1; 0.2; 0.3 - 1
    expected = torch.tensor([[0.05, 1.975, 0.0], [0.1, 0.2, -0.7]])
    torch.testing.assert_close(shaped, expected)


def test_the_clip_bounds_the_sum_of_score_and_penalty_on_both_sides() -> None:
    scores, lengths = torch.tensor([1.2, 9.0, -9.0]), torch.tensor([1, 1, 1])
    kl = torch.tensor([[0.5], [0.0], [0.0]])
    shaped = shape_rewards(scores, kl, lengths, beta=1.0, kl_sign=-1, clip=1.0)
    # 1.2 - 0.5 = 0.7 lies inside: clipping the score first would have given 0.5.
    torch.testing.assert_close(shaped, torch.tensor([[0.7], [1.0], [-1.0]]))


def test_a_one_token_response_gets_its_score_there() -> None:
    kl = torch.tensor([[2.0, 5.0, 5.0]])
    shaped = shape_rewards(
        torch.tensor([3.0]), kl, torch.tensor([1]), beta=0.25, kl_sign=-1, clip=50.0
    )
    assert shaped.tolist() == [[2.5, 0.0, 0.0]]  # 3 - 0.25 * 2


def test_a_token_drawn_with_certainty_is_charged_like_any_other() -> None:
    # log pi = 0.0 at positions 1 and 2, both real; only lengths say what is padding.
    policy, reference = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[-1.0, -2.0, -4.0]])
    shaped = shape_rewards(
        torch.tensor([5.0]),
        k1(policy, reference),
        torch.tensor([2]),
        beta=0.5,
        kl_sign=-1,
        clip=50.0,
    )
    assert shaped.tolist() == [[-0.5, 4.0, 0.0]]  # -0.5 * 1; -0.5 * 2 + 5; padding


@FEW
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    extra=st.integers(0, 3),
    garbage=st.sampled_from([math.nan, math.inf, -math.inf, 1e9]),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_padding_is_zero_and_moves_nothing(
    lengths: list[int], extra: int, garbage: float, sign: float
) -> None:
    width, size = max(lengths), torch.tensor(lengths)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(len(lengths), generator=generator)
    kl = torch.randn(len(lengths), width, generator=generator)
    wide = torch.full((len(lengths), width + extra), garbage)
    for row, length in enumerate(lengths):
        wide[row, :length] = kl[row, :length]
    options = {"beta": 0.3, "kl_sign": sign, "clip": NO_CLIP}
    narrow_rewards = shape_rewards(scores, kl, size, **options)
    wide_rewards = shape_rewards(scores, wide, size, **options)
    assert torch.equal(wide_rewards[:, :width], narrow_rewards)
    for row, length in enumerate(lengths):
        assert bool((wide_rewards[row, length:] == 0).all())


@FEW
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_row_adds_up_to_its_score_minus_its_penalty(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    kl = torch.randn(len(lengths), 5, generator=generator, dtype=torch.float64)
    options = {"beta": 0.2, "clip": NO_CLIP}
    size = torch.tensor(lengths)
    rewards = shape_rewards(scores, kl, size, kl_sign=-1, **options)
    costs = shape_rewards(scores, kl, size, kl_sign=+1, **options)
    for row, length in enumerate(lengths):
        penalty = 0.2 * sum(kl[row, :length].tolist())
        assert rewards[row].sum().item() == pytest.approx(scores[row].item() - penalty)
        assert costs[row].sum().item() == pytest.approx(scores[row].item() + penalty)


def test_without_penalty_only_the_last_token_is_paid() -> None:
    shaped = shape_rewards(
        torch.tensor([4.0, -2.0]),
        torch.ones(2, 3),
        torch.tensor([3, 2]),
        beta=0.0,
        kl_sign=-1,
        clip=50.0,
    )
    assert shaped.tolist() == [[0.0, 0.0, 4.0], [0.0, -2.0, 0.0]]


def test_inputs_stay_as_they_were() -> None:
    scores, kl = torch.tensor([4.0]), torch.ones(1, 3)
    shape_rewards(scores, kl, torch.tensor([2]), beta=0.1, kl_sign=-1, clip=1.0)
    assert (scores.tolist(), kl.tolist()) == ([4.0], [[1.0, 1.0, 1.0]])


def test_kl_coefficient_by_hand() -> None:
    assert kl_coefficient(0.1, "full_both") == 0.1
    assert kl_coefficient(0.1, "half_both") == 0.05
    with pytest.raises(ValueError, match="'half'"):
        kl_coefficient(0.1, "half")

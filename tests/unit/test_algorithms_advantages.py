"""GAE and the mixed advantage."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsys.algorithms.advantages import gae, mix_advantages
from rlsys.algorithms.shaping import shape_rewards

FEW = settings(max_examples=20, deadline=None, derandomize=True)
rows = st.lists(st.integers(1, 6), min_size=1, max_size=4)
unit = st.sampled_from([0.0, 0.3, 0.95, 1.0])


def draw(lengths: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return rewards, values, torch.tensor(lengths)


def brute_force(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Each advantage as an explicit sum of discounted one-step errors, no recursion."""
    ahead = [*values[1:], 0.0]
    errors = [r + gamma * n - v for r, n, v in zip(rewards, ahead, values, strict=True)]
    count = len(errors)
    return [
        math.fsum((gamma * lam) ** (later - t) * errors[later] for later in range(t, count))
        for t in range(count)
    ]


def test_gae_by_hand() -> None:
    advantages, returns = gae(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[0.5, 0.25]]),
        torch.tensor([2]),
        gamma=0.9,
        gae_lambda=0.8,
    )
    # delta_2 = 2 - 0.25 = 1.75; delta_1 = 1 + 0.9 * 0.25 - 0.5 = 0.725;
    # A_1 = 0.725 + 0.72 * 1.75 = 1.985; returns 1.985 + 0.5 and 1.75 + 0.25
    assert advantages.tolist()[0] == pytest.approx([1.985, 1.75], abs=1e-6)
    assert returns.tolist()[0] == pytest.approx([2.485, 2.0], abs=1e-6)


@FEW
@given(lengths=rows, gamma=unit, lam=unit, seed=st.integers(0, 99))
def test_gae_is_the_sum_of_discounted_errors(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    rewards, values, size = draw(lengths, seed)
    advantages, returns = gae(rewards, values, size, gamma=gamma, gae_lambda=lam)
    for row, length in enumerate(lengths):
        real = values[row, :length].tolist()
        expected = brute_force(rewards[row, :length].tolist(), real, gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        whole = [a + v for a, v in zip(expected, real, strict=True)]
        assert returns[row, :length].tolist() == pytest.approx(whole, abs=1e-12)


@FEW
@given(lengths=rows, gamma=unit, seed=st.integers(0, 99))
def test_lambda_one_returns_the_reward_to_go_whatever_the_values(
    lengths: list[int], gamma: float, seed: int
) -> None:
    rewards, values, size = draw(lengths, seed)
    _, returns = gae(rewards, values, size, gamma=gamma, gae_lambda=1.0)
    _, other = gae(rewards, 5 - 3 * values, size, gamma=gamma, gae_lambda=1.0)
    torch.testing.assert_close(returns, other)
    for row, length in enumerate(lengths):
        paid = rewards[row, :length].tolist()
        to_go = [
            math.fsum(gamma ** (later - t) * paid[later] for later in range(t, length))
            for t in range(length)
        ]
        assert returns[row, :length].tolist() == pytest.approx(to_go, abs=1e-12)


def test_lambda_zero_is_the_one_step_error() -> None:
    advantages, _ = gae(
        torch.tensor([[1.0, 1.0, 1.0]]),
        torch.tensor([[2.0, 4.0, 8.0]]),
        torch.tensor([3]),
        gamma=0.5,
        gae_lambda=0.0,
    )
    assert advantages.tolist() == [[1.0, 1.0, -7.0]]  # 1 + 2 - 2; 1 + 4 - 4; 1 + 0 - 8


def test_nothing_is_bootstrapped_after_the_last_token() -> None:
    # Row 0 ends inside the batch with a huge value behind it, row 1 at its edge.
    values = torch.tensor([[0.0, 3.0, 1000.0], [0.0, 0.0, 3.0]])
    advantages, returns = gae(
        torch.zeros(2, 3), values, torch.tensor([2, 3]), gamma=1.0, gae_lambda=0.0
    )
    assert advantages.tolist() == [[3.0, -3.0, 0.0], [0.0, 3.0, -3.0]]
    assert returns.tolist() == [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]


@pytest.mark.parametrize("width", [1, 4])
def test_a_one_token_response(width: int) -> None:
    rewards, values = torch.full((1, width), 9.0), torch.full((1, width), 9.0)
    rewards[0, 0], values[0, 0] = 2.0, 0.5
    advantages, returns = gae(rewards, values, torch.tensor([1]), gamma=0.9, gae_lambda=0.9)
    assert advantages.shape == returns.shape == (1, width)
    assert advantages.tolist() == [[1.5] + [0.0] * (width - 1)]  # 2 - 0.5
    assert returns.tolist() == [[2.0] + [0.0] * (width - 1)]


@FEW
@given(
    lengths=rows,
    extra=st.integers(0, 4),
    garbage=st.sampled_from([math.nan, math.inf, -math.inf, 1e9]),
)
def test_padding_changes_no_advantage_and_no_return(
    lengths: list[int], extra: int, garbage: float
) -> None:
    rewards, values, size = draw(lengths, 0)
    width = max(lengths)
    wide = [torch.full((len(lengths), width + extra), garbage, dtype=torch.float64) for _ in "rv"]
    for row, length in enumerate(lengths):
        for target, source in zip(wide, (rewards, values), strict=True):
            target[row, :length] = source[row, :length]
    narrow = gae(rewards, values, size, gamma=0.9, gae_lambda=0.8)
    for clean, result in zip(narrow, gae(*wide, size, gamma=0.9, gae_lambda=0.8), strict=True):
        assert torch.equal(result[:, :width], clean)
        for row, length in enumerate(lengths):
            assert bool((result[row, length:] == 0).all())
            assert bool((clean[row, length:] == 0).all())


def test_rows_do_not_touch_one_another() -> None:
    rewards, values, size = draw([3, 5, 1], 1)
    together, _ = gae(rewards, values, size, gamma=0.9, gae_lambda=0.8)
    for row in range(3):
        one = slice(row, row + 1)
        alone, _ = gae(rewards[one], values[one], size[one], gamma=0.9, gae_lambda=0.8)
        assert torch.equal(together[one], alone)


def test_gae_leaves_its_inputs_alone_and_refuses_an_empty_response() -> None:
    rewards, values, size = draw([2, 3], 2)
    before = rewards.clone(), values.clone()
    gae(rewards, values, size, gamma=0.9, gae_lambda=0.8)
    assert torch.equal(rewards, before[0])
    assert torch.equal(values, before[1])
    with pytest.raises(ValueError, match="lengths"):
        gae(rewards, values, torch.tensor([0, 3]), gamma=0.9, gae_lambda=0.8)


def test_mix_advantages_by_hand() -> None:
    reward, cost = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, -1.0]])
    # (3 - 2 * 1) / 3; (1 + 2) / 3
    mixed = mix_advantages(reward, cost, 2.0).tolist()[0]
    assert mixed == pytest.approx([0.3333333, 1.0], abs=1e-6)
    assert mix_advantages(reward, cost, 1.0).tolist() == [[1.0, 1.0]]  # (3 - 1)/2; (1 + 1)/2
    with pytest.raises(ValueError, match="negative"):
        mix_advantages(reward, cost, -1e-9)


@FEW
@given(seed=st.integers(0, 999))
def test_without_multiplier_the_mix_is_the_reward_advantage_bit_for_bit(seed: int) -> None:
    reward, cost = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(mix_advantages(reward, cost * 1e6, 0.0), reward)


def test_a_large_multiplier_leaves_only_the_cost() -> None:
    reward, cost = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    gaps = [
        (mix_advantages(reward, cost, lam) + cost).abs().max().item() for lam in (1e1, 1e4, 1e8)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-6


@FEW
@given(lam=st.floats(0, 1e4), seed=st.integers(0, 99))
def test_the_mix_lies_between_reward_and_negated_cost(lam: float, seed: int) -> None:
    reward, cost = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed)).double()
    mixed = mix_advantages(reward, cost, lam)
    low, high = torch.minimum(reward, -cost), torch.maximum(reward, -cost)
    assert bool((mixed >= low - 1e-9).all())
    assert bool((mixed <= high + 1e-9).all())


@pytest.mark.parametrize("lam", [0.0, 1.0, 10.0, 20.0])
def test_the_kl_part_of_the_mix_does_not_depend_on_the_multiplier(lam: float) -> None:
    generator = torch.Generator().manual_seed(3)
    kl = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    lengths, beta, zeros = torch.tensor([6, 1, 4]), 0.1, torch.zeros(3, 6, dtype=torch.float64)

    def advantage(sign: float, scores: Tensor, values: Tensor) -> Tensor:
        shaped = shape_rewards(scores, kl, lengths, beta=beta, kl_sign=sign, clip=50.0)
        return gae(shaped, values, lengths, gamma=0.99, gae_lambda=0.95)[0]

    none = torch.zeros(3, dtype=torch.float64)
    penalty, _ = gae(kl, zeros, lengths, gamma=0.99, gae_lambda=0.95)
    mixed = mix_advantages(advantage(-1, none, zeros), advantage(+1, none, zeros), lam)
    torch.testing.assert_close(mixed, -beta * penalty)

    # With scores and values the penalty is still an unchanged addend.
    scores, values = torch.randn(2, 3, generator=generator).double(), zeros + 0.7
    full = mix_advantages(advantage(-1, scores[0], values), advantage(+1, scores[1], values), lam)
    beta = 0.0
    bare = mix_advantages(advantage(-1, scores[0], values), advantage(+1, scores[1], values), lam)
    torch.testing.assert_close(full - bare, -0.1 * penalty)

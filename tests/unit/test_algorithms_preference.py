"""DPO."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsys.algorithms.masked import length_mask
from rlsys.algorithms.preference import dpo_loss, implicit_rewards

nats = st.floats(-50, 0, width=32)
FEW = settings(max_examples=25, deadline=None, derandomize=True)


def column(*values: float) -> Tensor:
    return torch.tensor(values)


def test_dpo_loss_by_hand() -> None:
    # Margins 0.1 (2 - (-1)) = 0.3 and 0.1 (0 - 5) = -0.5.
    loss = dpo_loss(
        column(-3.0, -4.0), column(-7.0, -1.0), column(-5.0, -4.0), column(-6.0, -6.0), beta=0.1
    )
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-0.3)), math.log1p(math.exp(0.5))])


@FEW
@given(nats, nats, nats, nats)
def test_swapping_the_pair_flips_the_margin(a: float, b: float, c: float, d: float) -> None:
    ours, other = (column(x, y) for x, y in ((a, b), (c, d)))
    straight = dpo_loss(ours[:1], ours[1:], other[:1], other[1:], beta=0.5)
    swapped = dpo_loss(ours[1:], ours[:1], other[1:], other[:1], beta=0.5)
    margin = implicit_rewards(ours, other, beta=0.5)
    # -log sigmoid(m) + log sigmoid(-m) = -m
    assert (straight - swapped).item() == pytest.approx((margin[1] - margin[0]).item(), abs=1e-4)


def test_the_policy_at_its_reference_pays_log_two_and_is_pushed_apart() -> None:
    chosen, rejected = column(-2.0).requires_grad_(), column(-9.0).requires_grad_()
    loss = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-0.1, 0.1))


def test_what_both_answers_share_changes_nothing() -> None:
    a, b, c, d = column(-3.0), column(-5.0), column(-4.0), column(-4.5)
    loss = dpo_loss(a, b, c, d, beta=0.3)
    assert dpo_loss(a - 7, b - 7, c, d, beta=0.3).tolist() == pytest.approx(loss.tolist())


def test_padding_changes_neither_loss_nor_gradient() -> None:
    def loss_and_gradient(width: int, filler: float) -> tuple[float, list[float]]:
        lengths = torch.tensor([3, 1, 2, 2])
        mask = length_mask(lengths, width)
        tokens = torch.arange(4 * width).reshape(4, width).float() % 3 * -0.5 - 0.1
        real = torch.tensor([[-0.1, -0.6, -1.1], [-0.7, 0, 0], [-0.2, -0.4, 0], [-1.0, -0.3, 0]])
        tokens[:, :3] = real
        logprobs = tokens.masked_fill(~mask, filler).requires_grad_()
        sums = logprobs.masked_fill(~mask, 0.0).sum(-1)
        zeros = torch.zeros(2)
        loss = dpo_loss(sums[0::2], sums[1::2], zeros, zeros, beta=0.4).mean()
        loss.backward()
        assert logprobs.grad is not None
        return loss.item(), logprobs.grad[:, :3].flatten().tolist()

    plain = loss_and_gradient(3, 0.0)
    padded = loss_and_gradient(9, 123.0)
    assert padded[0] == pytest.approx(plain[0])
    assert padded[1] == pytest.approx(plain[1])


def test_a_batch_is_the_mean_of_its_pairs() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    whole = dpo_loss(*values, beta=0.1).mean()
    halves = [dpo_loss(*values[:, part], beta=0.1).sum() / 6 for part in (slice(0, 2), slice(2, 6))]
    assert sum(halves).item() == pytest.approx(whole.item())


def test_large_margins_stay_finite() -> None:
    far, zero = column(-1e4, 0.0), column(0.0, 0.0)
    assert dpo_loss(far, zero, zero, zero, beta=1.0).tolist() == pytest.approx([1e4, math.log(2)])

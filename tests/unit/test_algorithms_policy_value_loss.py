"""The clipped policy and value losses, alone and with the reductions they are used with."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsys.algorithms.logprobs import token_logprobs
from rlsys.algorithms.masked import aggregate, length_mask
from rlsys.algorithms.policy_loss import ppo_clip
from rlsys.algorithms.value_loss import clipped_value_loss

FEW = settings(max_examples=20, deadline=None, derandomize=True)
GARBAGE = [math.nan, math.inf, -math.inf, 1e9, -1e9]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "slope"),
    [
        (1.5, 2.0, -2.4, True, 0.0),  # max(-3.0, -1.2 * 2): already far enough up
        (1.5, -2.0, 3.0, False, 3.0),  # max(3.0, 2.4): must come back down, slope -A rho
        (0.5, 2.0, -1.0, False, -1.0),  # max(-1.0, -1.6): must come back up
        (0.5, -2.0, 1.6, True, 0.0),  # max(1.0, 0.8 * 2): already far enough down
        (1.1, 2.0, -2.2, False, -2.2),  # inside the clip
        (0.9, -2.0, 1.8, False, 1.8),  # inside the clip
        (1.0, 2.0, -2.0, False, -2.0),
        (1.5, 0.0, 0.0, False, 0.0),
    ],
)
def test_ppo_clip_by_hand(
    ratio: float, advantage: float, loss: float, clipped: bool, slope: float
) -> None:
    logprobs = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    losses, hit = ppo_clip(logprobs, torch.tensor([[-1.0]]), torch.tensor([[advantage]]), clip=0.2)
    losses.sum().backward()
    assert losses.shape == hit.shape == (1, 1)
    assert losses.item() == pytest.approx(loss, abs=1e-5)
    assert hit.item() is clipped
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(slope, abs=1e-5)


def test_at_ratio_one_the_gradient_is_that_of_reinforce() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 7, generator=generator)
    tokens = torch.randint(7, (3, 4), generator=generator)
    advantages = torch.randn(3, 4, generator=generator)
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    logprobs = token_logprobs(first, tokens)
    losses, hit = ppo_clip(logprobs, logprobs.detach(), advantages, clip=0.2)
    losses.sum().backward()
    (-(advantages * token_logprobs(second, tokens)).sum()).backward()
    assert not bool(hit.any())
    torch.testing.assert_close(losses.detach(), -advantages)
    torch.testing.assert_close(first.grad, second.grad)


def test_a_certain_token_is_trained_on_like_any_other() -> None:
    # log pi = 0.0 is a probability of one, not padding: ratio e^0.1, inside the clip.
    logprobs = torch.tensor([[0.0, 0.0]], requires_grad=True)
    losses, _ = ppo_clip(logprobs, torch.tensor([[-0.1, 0.0]]), torch.ones(1, 2), clip=0.2)
    loss = aggregate(losses, length_mask(torch.tensor([2]), 2), form="token_mean", **counts([2]))
    loss.backward()
    assert loss.item() == pytest.approx(-1.0525855, abs=1e-6)  # -(e^0.1 + 1) / 2
    assert logprobs.grad is not None
    assert logprobs.grad.tolist()[0] == pytest.approx([-0.5525855, -0.5], abs=1e-6)


@FEW
@given(
    move=st.floats(-3, 3),
    advantage=st.floats(-5, 5),
    clip=st.sampled_from([0.05, 0.2, 0.5]),
)
def test_the_surrogate_never_promises_more_than_the_plain_ratio(
    move: float, advantage: float, clip: float
) -> None:
    moved, old = torch.tensor([[move]], dtype=torch.float64), torch.zeros(1, 1).double()
    losses, hit = ppo_clip(moved, old, torch.tensor([[advantage]], dtype=torch.float64), clip=clip)
    gain, plain = -losses.item(), advantage * math.exp(move)
    assert gain <= plain + 1e-9
    assert gain <= abs(advantage) * (1 + clip) + 1e-9
    if abs(gain - plain) > 1e-9:
        assert hit.item() is True


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (2.0, 1.0, 0.0, 2.0, 2.0),  # max(2^2, 1.5^2) / 2: moved away, full slope V - G
        (2.0, 1.0, 2.0, 0.125, 0.0),  # max(0, (1.5 - 2)^2) / 2: the clipped branch, no slope
        (0.0, 1.0, 0.0, 0.125, 0.0),  # max(0, 0.5^2) / 2: the same downwards
        (0.0, 1.0, 3.0, 4.5, -3.0),  # max(3^2, 2.5^2) / 2
        (1.2, 1.0, 2.0, 0.32, -0.8),  # inside the clip: 0.8^2 / 2
        (1.0, 1.0, 1.0, 0.0, 0.0),
    ],
)
def test_clipped_value_loss_by_hand(
    value: float, old: float, target: float, loss: float, slope: float
) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    losses = clipped_value_loss(values, torch.tensor([[old]]), torch.tensor([[target]]), clip=0.5)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, abs=1e-6)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(slope, abs=1e-6)


@FEW
@given(value=st.floats(-9, 9), old=st.floats(-9, 9), target=st.floats(-9, 9))
def test_the_value_loss_is_at_least_half_the_squared_error(
    value: float, old: float, target: float
) -> None:
    tensors = [torch.tensor([[x]], dtype=torch.float64) for x in (value, old, target)]
    plain = 0.5 * (value - target) ** 2
    assert clipped_value_loss(*tensors, clip=0.2).item() >= plain - 1e-9
    assert clipped_value_loss(*tensors, clip=100.0).item() == pytest.approx(plain, abs=1e-9)


def counts(lengths: list[int]) -> dict[str, int]:
    return {"global_tokens": sum(lengths), "global_sequences": len(lengths)}


def reduced(
    kind: str, inputs: list[Tensor], lengths: list[int], form: str
) -> tuple[float, Tensor, Tensor]:
    """Loss, gradient of the trained input and mask. The trained input is filled outside the mask
    before it meets anything, which is what keeps 0 * NaN out of the backward pass.
    """
    leaf = inputs[0].clone().requires_grad_()
    mask = length_mask(torch.tensor(lengths), leaf.shape[1])
    trained = leaf.masked_fill(~mask, 0.0)
    if kind == "policy":
        losses, _ = ppo_clip(trained, inputs[1], inputs[2], clip=0.2)
    else:
        losses = clipped_value_loss(trained, inputs[1], inputs[2], clip=0.2)
    loss = aggregate(losses, mask, form=form, **counts(lengths))
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad, mask


@pytest.mark.parametrize("kind", ["policy", "value"])
@pytest.mark.parametrize("form", ["token_mean", "sequence_mean"])
@FEW
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    extra=st.integers(0, 3),
    garbage=st.tuples(*[st.sampled_from(GARBAGE)] * 3),
)
def test_padding_changes_no_loss_and_no_gradient(
    kind: str, form: str, lengths: list[int], extra: int, garbage: tuple[float, float, float]
) -> None:
    width = max(lengths)
    generator = torch.Generator().manual_seed(4)
    inputs = list(torch.randn(3, len(lengths), width, generator=generator, dtype=torch.float64))
    shape = (len(lengths), width + extra)
    wide = [torch.full(shape, g, dtype=torch.float64) for g in garbage]
    for row, length in enumerate(lengths):
        for target, source in zip(wide, inputs, strict=True):
            target[row, :length] = source[row, :length]
    loss, grad, mask = reduced(kind, inputs, lengths, form)
    wide_loss, wide_grad, wide_mask = reduced(kind, wide, lengths, form)
    assert wide_loss == pytest.approx(loss, rel=1e-12, abs=1e-14)
    assert torch.equal(wide_grad[wide_mask], grad[mask])
    assert bool((wide_grad[~wide_mask] == 0).all())


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_padding_stays_in_its_own_position(garbage: float, which: int) -> None:
    inputs = [torch.tensor([[0.1, 0.1]]), torch.zeros(1, 2), torch.ones(1, 2)]
    inputs[which][0, 1] = garbage
    losses, hit = ppo_clip(*inputs, clip=0.2)
    assert losses[0, 0].item() == pytest.approx(-1.1051709, abs=1e-6)  # -e^0.1
    assert hit[0, 0].item() is False
    # (0.1 - 1)^2 / 2
    assert clipped_value_loss(*inputs, clip=0.2)[0, 0].item() == pytest.approx(0.405, abs=1e-6)

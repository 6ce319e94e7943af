"""One batch, micro-batches or ranks: the same loss and the same gradient, from the logits up."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsys.algorithms.logprobs import forbid, token_logprobs
from rlsys.algorithms.masked import aggregate, length_mask
from rlsys.algorithms.policy_loss import ppo_clip
from rlsys.algorithms.value_loss import clipped_value_loss

FEW = settings(max_examples=15, deadline=None, derandomize=True)
FORMS = ["token_mean", "sequence_mean"]
FEATURES, VOCAB, PAD = 4, 6, 5


@dataclass
class Case:
    """A batch over a linear policy: logits = features @ weight; the pad id cannot be drawn."""

    weight: Tensor
    features: Tensor
    tokens: Tensor
    old: Tensor
    advantages: Tensor
    lengths: list[int]

    def loss(self, rows: list[int], form: str, *, width: int | None = None) -> Tensor:
        """The share of some rows, trimmed to ``width`` or to their own longest."""
        lengths = [self.lengths[r] for r in rows]
        width = width or max(lengths)
        mask = length_mask(torch.tensor(lengths), width)
        logits = forbid(self.features[rows, :width] @ self.weight, [PAD])
        logprobs = token_logprobs(logits, self.tokens[rows, :width]).masked_fill(~mask, 0.0)
        losses, _ = ppo_clip(
            logprobs, self.old[rows, :width], self.advantages[rows, :width], clip=0.2
        )
        return self._reduce(losses, mask, form)

    def value_loss(self, rows: list[int], form: str) -> Tensor:
        mask = length_mask(torch.tensor([self.lengths[r] for r in rows]), self.tokens.shape[1])
        values = (self.features[rows] @ self.weight)[..., 0]
        losses = clipped_value_loss(values, self.old[rows], self.advantages[rows], clip=0.2)
        return self._reduce(losses, mask, form)

    def _reduce(self, losses: Tensor, mask: Tensor, form: str) -> Tensor:
        return aggregate(
            losses,
            mask,
            form=form,
            global_tokens=sum(self.lengths),
            global_sequences=len(self.lengths),
        )


def make(lengths: list[int], seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths) + 2)
    weight = torch.randn(FEATURES, VOCAB, generator=generator)
    features = torch.randn(*shape, FEATURES, generator=generator)
    mask = length_mask(torch.tensor(lengths), shape[1])
    tokens = torch.randint(PAD, shape, generator=generator).masked_fill(~mask, PAD)
    now = token_logprobs(forbid(features @ weight, [PAD]), tokens)
    # Wide enough a spread that both sides of the clip occur.
    old = now.masked_fill(~mask, 0.0) + 0.4 * torch.randn(shape, generator=generator)
    advantages = torch.randn(shape, generator=generator)
    return Case(weight.requires_grad_(), features, tokens, old, advantages, lengths)


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["loss", "value_loss"])
@FEW
@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    parts=st.integers(2, 3),
    seed=st.integers(0, 99),
)
def test_shards_of_rows_add_up_to_the_batch(
    form: str, kind: str, lengths: list[int], parts: int, seed: int
) -> None:
    case = make(lengths, seed)
    of = getattr(case, kind)
    whole = of(list(range(len(lengths))), form)
    shards = [list(range(start, len(lengths), parts)) for start in range(parts)]
    shares = [of(rows, form) for rows in shards if rows]
    assert sum(s.item() for s in shares) == pytest.approx(whole.item(), rel=1e-4, abs=1e-6)
    total = sum((gradient(s, case.weight) for s in shares), torch.zeros_like(case.weight))
    torch.testing.assert_close(total, gradient(whole, case.weight), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_batch_above_meets_the_clip_on_both_sides(form: str) -> None:
    # Otherwise the sums above would say nothing about the clip.
    case = make([5, 3, 1, 4, 2, 5])
    mask = length_mask(torch.tensor(case.lengths), case.tokens.shape[1])
    now = token_logprobs(forbid(case.features @ case.weight, [PAD]), case.tokens)
    _, hit = ppo_clip(now.masked_fill(~mask, 0.0), case.old, case.advantages, clip=0.2)
    kept = hit[mask]
    assert bool(kept.any())
    assert not bool(kept.all())
    assert gradient(case.loss([0, 1, 2], form), case.weight).abs().max() > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e9])
def test_the_padding_of_a_batch_reaches_no_weight(form: str, garbage: float) -> None:
    case = make([3, 1, 4], 7)
    rows, full = [0, 1, 2], case.tokens.shape[1]
    trimmed = case.loss(rows, form)
    mask = length_mask(torch.tensor(case.lengths), full)
    case.old = case.old.masked_fill(~mask, garbage)
    case.advantages = case.advantages.masked_fill(~mask, -garbage)
    case.features = case.features.masked_fill(~mask[..., None], 1e4)
    padded = case.loss(rows, form, width=full)
    assert padded.item() == pytest.approx(trimmed.item(), rel=1e-6)
    torch.testing.assert_close(gradient(padded, case.weight), gradient(trimmed, case.weight))


@pytest.mark.parametrize("form", FORMS)
def test_gradient_reaches_response_positions_and_no_other(form: str) -> None:
    lengths = torch.tensor([1, 4, 2])
    mask = length_mask(lengths, 5)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, VOCAB, generator=generator, requires_grad=True)
    tokens = torch.randint(PAD, (3, 5), generator=generator).masked_fill(~mask, PAD)
    # The pad id is forbidden, so padding really has a log-probability of minus infinity here.
    logprobs = token_logprobs(forbid(logits, [PAD]), tokens)
    assert bool(logprobs[~mask].isneginf().all())
    logprobs = logprobs.masked_fill(~mask, 0.0)
    losses, _ = ppo_clip(logprobs, logprobs.detach(), torch.ones(3, 5), clip=0.2)
    loss = aggregate(losses, mask, form=form, global_tokens=7, global_sequences=3)
    grad = gradient(loss, logits)
    reached = (grad != 0).any(-1)
    assert torch.equal(reached, mask)
    assert bool((grad[~mask] == 0).all())
    assert bool((grad[..., PAD] == 0).all())

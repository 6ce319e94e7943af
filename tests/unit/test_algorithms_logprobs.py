"""Log-probabilities of tokens: exact, fp32, over the allowed ids only."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.algorithms.logprobs import at_temperature, forbid, logprob_gap, token_logprobs
from rlsys.algorithms.masked import length_mask

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def test_token_logprobs_by_hand() -> None:
    # exp(logits) = 1, 2, 5, which sum to 8: probabilities 1/8, 1/4, 5/8.
    logits = torch.tensor([0.0, math.log(2), math.log(5)]).expand(1, 3, 3)
    logprobs = token_logprobs(logits, torch.tensor([[0, 1, 2]]))
    assert logprobs.tolist()[0] == pytest.approx([-2.0794415, -1.3862944, -0.4700036], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_token_logprobs_are_fp32_in_type_and_in_precision(dtype: torch.dtype) -> None:
    # logsumexp(1, 2, 3) = 3 + ln(1 + e^-1 + e^-2) = 3.4076060; bf16 holds it to about 0.008 only.
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 3, dtype=dtype)
    logprobs = token_logprobs(logits, torch.tensor([0, 1, 2]))
    assert logprobs.dtype == torch.float32
    assert logprobs.tolist() == pytest.approx([-2.4076060, -1.4076060, -0.4076060], abs=1e-6)


def test_one_token_rows_keep_their_shape() -> None:
    assert token_logprobs(torch.zeros(4, 1, 8), torch.zeros(4, 1, dtype=torch.long)).shape == (4, 1)


def test_a_certain_token_is_exactly_zero_and_its_gradient_vanishes() -> None:
    logits = torch.tensor([[[300.0, 0.0, -5.0]]], requires_grad=True)
    logprob = token_logprobs(logits, torch.tensor([[0]]))
    logprob.sum().backward()
    assert logprob.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.tolist() == [[[0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_large_logits_do_not_overflow(shift: float) -> None:
    # Two equal logits: each token has probability one half, wherever the two lie.
    logits = torch.tensor([[shift, shift]])
    assert token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(-0.6931472, abs=1e-4)


def test_gradient_is_one_hot_minus_softmax() -> None:
    logits = torch.tensor([0.0, math.log(2), math.log(5)], requires_grad=True)
    token_logprobs(logits, torch.tensor(1)).backward()
    assert logits.grad is not None
    # one-hot(1) - (1/8, 2/8, 5/8)
    assert logits.grad.tolist() == pytest.approx([-0.125, 0.75, -0.625], abs=1e-6)


@FEW
@given(
    vocab=st.integers(3, 12),
    banned=st.sets(st.integers(0, 11), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_forbidden_ids_get_nothing_and_the_rest_everything(
    vocab: int, banned: set[int], seed: int
) -> None:
    ids = sorted(i for i in banned if i < vocab - 1)  # the last id stays allowed
    logits = torch.randn(2, 3, vocab, generator=torch.Generator().manual_seed(seed))
    every = torch.arange(vocab).expand(2, 3, vocab)
    shown = forbid(logits, ids)[..., None, :].expand(2, 3, vocab, vocab)
    probabilities = token_logprobs(shown, every).exp()
    allowed = [i for i in range(vocab) if i not in ids]
    assert bool((probabilities[..., ids] == 0).all())
    assert bool((probabilities[..., allowed] > 0).all())
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3))
    # What is left keeps its odds.
    torch.testing.assert_close(
        probabilities[..., allowed], logits[..., allowed].softmax(-1), atol=1e-6, rtol=1e-5
    )


def test_forbid_by_hand() -> None:
    # Weights 1, 2, 5; without the last id the first two share 3: 1/3 and 2/3.
    logits = torch.tensor([0.0, math.log(2), math.log(5)])
    kept = forbid(logits, [2])
    both = token_logprobs(kept.expand(3, 3), torch.arange(3))
    assert both.tolist() == pytest.approx([-1.0986123, -0.4054651, -math.inf], abs=1e-6)


def test_forbid_leaves_its_input_alone() -> None:
    logits = torch.zeros(2, 4)
    forbid(logits, [1, 3])
    assert logits.tolist() == [[0.0] * 4] * 2


def test_forbidding_nothing_changes_nothing() -> None:
    logits = torch.randn(2, 4)
    assert torch.equal(forbid(logits, []), logits)


def test_a_forbidden_id_gets_no_gradient() -> None:
    logits = torch.zeros(4, requires_grad=True)
    token_logprobs(forbid(logits, [3]), torch.tensor(0)).backward()
    assert logits.grad is not None
    # one-hot(0) - (1/3, 1/3, 1/3), and the forbidden id takes no part.
    assert logits.grad.tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0.0], abs=1e-6)
    assert logits.grad[3].item() == 0.0


def test_logprob_gap_by_hand() -> None:
    engine = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, 7.0, 7.0]])
    trainer = torch.tensor([[-1.5, -1.0, -9.0], [-0.5, 0.0, 0.0]])
    largest, mean = logprob_gap(engine, trainer, length_mask(torch.tensor([2, 1]), 3))
    assert largest == 1.0
    assert mean == pytest.approx(0.5)  # (0.5 + 1.0 + 0.0) / 3


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e9])
def test_logprob_gap_reads_no_padding_and_is_symmetric(garbage: float) -> None:
    left = torch.tensor([[-1.0, garbage]])
    right = torch.tensor([[-1.25, -garbage]])
    mask = torch.tensor([[True, False]])
    assert logprob_gap(left, right, mask) == logprob_gap(right, left, mask) == (0.25, 0.25)


def test_logprob_gap_refuses_what_is_not_a_number() -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="not a number"):
        logprob_gap(one, one, torch.zeros(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="not a number"):
        logprob_gap(one * math.nan, one, torch.ones(1, 1, dtype=torch.bool))


# temperature


def test_a_temperature_by_hand() -> None:
    # Divided by 0.5, ln 1, ln 2, ln 3 are ln 1, ln 4, ln 9: probabilities 1/14, 4/14, 9/14.
    logits = torch.tensor([[0.0, math.log(2), math.log(3)]] * 3)
    logprobs = token_logprobs(at_temperature(logits, 0.5), torch.tensor([0, 1, 2]))
    assert logprobs.exp().tolist() == pytest.approx([1 / 14, 4 / 14, 9 / 14], abs=1e-6)


def test_temperature_one_changes_nothing_and_another_is_in_fp32() -> None:
    logits = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert at_temperature(logits, 1.0) is logits
    assert at_temperature(logits, 0.7).dtype == torch.float32
    assert at_temperature(logits, 0.7).tolist() == pytest.approx([1 / 0.7, 2 / 0.7], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_of_zero_is_no_distribution(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        at_temperature(torch.zeros(2), temperature)

"""Masks and reductions: lengths decide what counts, padding never does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsys.algorithms.masked import aggregate, length_mask, masked_mean, masked_std, masked_sum

FEW = settings(max_examples=20, deadline=None, derandomize=True)
GARBAGE = [float("nan"), float("inf"), float("-inf"), 1e9, -1e9]
FORMS = ["token_mean", "sequence_mean"]
rows = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def padded(lengths: list[int], extra: int, garbage: float) -> tuple[Tensor, Tensor]:
    """The same real values whatever the padding: row b, position t holds 10 b + t + 1."""
    width = max(lengths) + extra
    values = 10.0 * torch.arange(len(lengths))[:, None] + torch.arange(1, width + 1)
    mask = length_mask(torch.tensor(lengths), width)
    return values.masked_fill(~mask, garbage), mask


def share(values: Tensor, mask: Tensor, form: str, lengths: list[int]) -> Tensor:
    return aggregate(
        values, mask, form=form, global_tokens=sum(lengths), global_sequences=len(lengths)
    )


def test_length_mask_by_hand() -> None:
    mask = length_mask(torch.tensor([1, 3, 2]), 3)
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("lengths", [[0], [2, 0], [-1], [4], [3, 5]])
def test_length_mask_refuses_empty_and_overlong_rows(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"1\.\.3"):
        length_mask(torch.tensor(lengths), 3)


@FEW
@given(lengths=rows, extra=st.integers(0, 4))
def test_length_mask_has_exactly_the_lengths_and_no_gaps(lengths: list[int], extra: int) -> None:
    mask = length_mask(torch.tensor(lengths), max(lengths) + extra).int()
    assert mask.sum(-1).tolist() == lengths
    assert bool((mask[:, 1:] <= mask[:, :-1]).all())


def test_masked_sum_and_mean_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 100.0], [4.0, 100.0, 100.0]])
    mask = length_mask(torch.tensor([2, 1]), 3)
    assert masked_sum(values, mask).item() == 7.0  # 1 + 2 + 4
    assert masked_mean(values, mask).item() == pytest.approx(2.3333333)  # 7 / 3


def test_a_real_zero_counts_in_the_mean() -> None:
    values = torch.tensor([[0.0, 6.0, 0.0]])
    # Position 1 is a real zero, position 3 is padding: 6 / 2, not 6 / 1 and not 6 / 3.
    assert masked_mean(values, length_mask(torch.tensor([2]), 3)).item() == 3.0


def test_masked_sum_of_nothing_is_zero_and_its_mean_an_error() -> None:
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    values = torch.full((1, 2), float("nan"))
    assert masked_sum(values, nothing).item() == 0.0
    with pytest.raises(ValueError, match="empty mask"):
        masked_mean(values, nothing)


def test_a_real_nan_is_not_hidden() -> None:
    values = torch.tensor([[1.0, float("nan"), 0.0]])
    mask = length_mask(torch.tensor([2]), 3)
    assert masked_sum(values, mask).isnan()
    assert all(share(values, mask, form, [2]).isnan() for form in FORMS)


def test_aggregate_by_hand_tells_the_forms_apart() -> None:
    values = torch.tensor([[2.0, 4.0, 6.0], [10.0, 99.0, 99.0]])
    mask = length_mask(torch.tensor([3, 1]), 3)
    # token_mean: (2 + 4 + 6 + 10) / 4; sequence_mean: ((2 + 4 + 6) / 3 + 10 / 1) / 2
    assert share(values, mask, "token_mean", [3, 1]).item() == 5.5
    assert share(values, mask, "sequence_mean", [3, 1]).item() == 7.0


def test_aggregate_divides_by_the_global_counts() -> None:
    values, mask = torch.tensor([[2.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool)

    def of(form: str) -> float:
        return aggregate(values, mask, form=form, global_tokens=12, global_sequences=5).item()

    assert of("token_mean") == 0.5  # (2 + 4) / 12
    assert of("sequence_mean") == pytest.approx(0.6)  # ((2 + 4) / 2) / 5


def test_aggregate_refuses_an_unknown_form() -> None:
    with pytest.raises(ValueError, match="'mean'"):
        share(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), "mean", [1])


@pytest.mark.parametrize("form", FORMS)
@FEW
@given(lengths=rows, extra=st.integers(0, 4), garbage=st.sampled_from(GARBAGE))
def test_padding_changes_neither_value_nor_gradient(
    form: str, lengths: list[int], extra: int, garbage: float
) -> None:
    plain, plain_mask = padded(lengths, 0, 0.0)
    values, mask = padded(lengths, extra, garbage)
    plain.requires_grad_()
    values.requires_grad_()
    expected, actual = (
        share(plain, plain_mask, form, lengths),
        share(values, mask, form, lengths),
    )
    torch.testing.assert_close(actual, expected)
    expected.backward()
    actual.backward()
    assert plain.grad is not None
    assert values.grad is not None
    assert bool((values.grad[~mask] == 0).all())
    assert bool((values.grad[mask] > 0).all())
    assert torch.equal(values.grad[mask], plain.grad[plain_mask])
    torch.testing.assert_close(masked_sum(values, mask), masked_sum(plain, plain_mask))
    torch.testing.assert_close(masked_mean(values, mask), masked_mean(plain, plain_mask))


@pytest.mark.parametrize("form", FORMS)
@FEW
@given(lengths=rows, cut=st.integers(0, 5))
def test_shares_add_up_to_the_whole(form: str, lengths: list[int], cut: int) -> None:
    values, mask = padded(lengths, 1, 7.0)
    parts = [slice(0, min(cut, len(lengths))), slice(min(cut, len(lengths)), None)]
    total = sum(share(values[p], mask[p], form, lengths).item() for p in parts)
    assert total == pytest.approx(share(values, mask, form, lengths).item(), rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_stand_in_row_adds_exactly_nothing(form: str) -> None:
    # A rank that ran out of rows still runs one, wholly masked, to take part in collectives.
    values = torch.full((1, 3), float("nan"), requires_grad=True)
    loss = share(values, torch.zeros(1, 3, dtype=torch.bool), form, [3, 2])
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_sequence_mean_weighs_sequences_alike_and_token_mean_tokens() -> None:
    lengths = [1, 4]
    values, mask = padded(lengths, 0, 0.0)
    grads = {}
    for form in FORMS:
        leaf = values.clone().requires_grad_()
        share(leaf, mask, form, lengths).backward()
        assert leaf.grad is not None
        grads[form] = leaf.grad.sum(-1).tolist()
    assert grads["sequence_mean"] == pytest.approx([0.5, 0.5])
    assert grads["token_mean"] == pytest.approx([0.2, 0.8])  # 1 and 4 tokens of 5


def test_the_deviation_is_that_of_the_kept_positions() -> None:
    values = torch.tensor([[1.0, 3.0, float("nan")], [5.0, 7.0, 1e9]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    assert float(masked_std(values, mask)) == pytest.approx(5**0.5)  # deviations 3, 1, 1, 3
    assert float(masked_std(torch.full((2, 3), 4.0), mask)) == 0.0
    with pytest.raises(ValueError, match="empty mask"):
        masked_std(values, torch.zeros_like(mask))

"""Losses and metrics of reward and cost models."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsys.algorithms.scorer_losses import cost_loss, cost_signs, reward_loss
from rlsys.algorithms.scorer_metrics import balanced_accuracy, rank_auc, ranking_accuracy

FEW = settings(max_examples=25, deadline=None, derandomize=True)
labelled = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def column(*values: float) -> Tensor:
    return torch.tensor(values)


def slopes(
    higher: float, lower: float, s_high: float, s_low: float, scale: float
) -> tuple[float, float]:
    """d loss / d C of the two answers of one pair."""
    c_high, c_low = column(higher).requires_grad_(), column(lower).requires_grad_()
    loss = cost_loss(
        c_high, c_low, column(s_high), column(s_low), sign_scale=scale, regularization=0.0
    )
    grads = torch.autograd.grad(loss.sum(), (c_high, c_low))
    return grads[0].item(), grads[1].item()


def anchors(higher: float, lower: float, s_high: float, s_low: float) -> tuple[float, float]:
    """The sign terms' part of the slopes: what the ranking term does not already give."""
    both, ranking = (slopes(higher, lower, s_high, s_low, scale) for scale in (1.0, 0.0))
    return both[0] - ranking[0], both[1] - ranking[1]


def test_reward_loss_by_hand() -> None:
    loss = reward_loss(column(0.0, 2.0, 1.0), column(0.0, 1.0, 2.0), regularization=0.1)
    # ln 2; ln(1 + e^-1) + 0.1 (4 + 1) / 2; ln(1 + e) + 0.25
    assert loss.tolist() == pytest.approx([0.6931472, 0.5632617, 1.5632617], abs=1e-6)
    assert reward_loss(column(5.0), column(5.0), regularization=0.0).item() == pytest.approx(
        math.log(2)
    )


def test_reward_loss_survives_large_margins() -> None:
    loss = reward_loss(column(-500.0, 500.0), column(500.0, -500.0), regularization=0.0)
    assert loss.tolist() == pytest.approx([1000.0, 0.0])


def test_descent_on_the_reward_loss_parts_the_pair() -> None:
    better, worse = column(0.3).requires_grad_(), column(0.7).requires_grad_()
    reward_loss(better, worse, regularization=0.0).sum().backward()
    assert better.grad is not None
    assert worse.grad is not None
    assert better.grad.item() < 0 < worse.grad.item()
    assert better.grad.item() == pytest.approx(-worse.grad.item())


def test_regularization_pulls_both_scores_to_zero() -> None:
    # A shift of both scores leaves the ranking alone, so only the L2 term feels it: reg * R.
    better, worse = column(40.0).requires_grad_(), column(-2.0).requires_grad_()
    reward_loss(better, worse, regularization=0.5).sum().backward()
    assert better.grad is not None
    assert worse.grad is not None
    assert (better.grad.item(), worse.grad.item()) == pytest.approx((20.0, -1.0))


def test_cost_loss_by_hand() -> None:
    loss = cost_loss(
        column(0.0, 1.0, 2.0),
        column(0.0, -1.0, 1.0),
        column(1.0, 1.0, 3.0),
        column(-1.0, -1.0, -1.0),
        sign_scale=1.0,
        regularization=0.0,
    )
    # 3 ln 2; ln(1 + e^-2) + 2 ln(1 + e^-1); ln(1 + e^-1) + ln(1 + e^-6) + ln(1 + e)
    assert loss.tolist() == pytest.approx([2.0794415, 0.7534514, 1.6289991], abs=1e-6)
    loss = cost_loss(
        column(1.0), column(-1.0), column(1.0), column(-1.0), sign_scale=0.5, regularization=0.2
    )
    # 0.1269280 + 0.5 * 0.6265234 + 0.2 (1 + 1) / 2
    assert loss.item() == pytest.approx(0.6401897, abs=1e-6)


@FEW
@given(
    pairs=st.lists(st.tuples(*[st.floats(-5, 5)] * 4), min_size=1, max_size=4),
    regularization=st.floats(0, 1),
)
def test_without_sign_terms_the_cost_loss_is_the_reward_loss(
    pairs: list[tuple[float, float, float, float]], regularization: float
) -> None:
    higher, lower, s_high, s_low = torch.tensor(pairs).unbind(-1)
    ranked = reward_loss(higher, lower, regularization=regularization)
    costs = cost_loss(higher, lower, s_high, s_low, sign_scale=0.0, regularization=regularization)
    assert torch.equal(costs, ranked)


@pytest.mark.parametrize("cost", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("sign", [-3.0, -1.0, 1.0, 3.0])
def test_sign_terms_push_a_cost_to_the_side_of_its_label(cost: float, sign: float) -> None:
    high, _ = anchors(cost, 0.5, sign, 0.0)
    _, low = anchors(0.5, cost, 0.0, sign)
    # Descent goes against the slope: up where s > 0, down where s < 0, on either side of the pair.
    assert math.copysign(1, high) == math.copysign(1, low) == -math.copysign(1, sign)
    assert high == pytest.approx(low, abs=1e-5)


def test_a_sign_of_zero_anchors_nothing() -> None:
    assert anchors(1.3, -0.4, 0.0, 0.0) == (0.0, 0.0)
    high, low = anchors(1.3, -0.4, 0.0, -1.0)
    assert high == 0.0
    assert low > 0


def test_the_sign_terms_know_which_answer_they_belong_to() -> None:
    # -s sigmoid(-s C): -3 sigmoid(-6) and +1 sigmoid(1)
    assert anchors(2.0, 1.0, 3.0, -1.0) == pytest.approx((-0.0074179, 0.7310586), abs=1e-5)


def test_descent_on_the_cost_loss_ranks_the_harmful_answer_higher() -> None:
    high, low = slopes(0.0, 0.0, 0.0, 0.0, scale=1.0)
    assert (high, low) == pytest.approx((-0.5, 0.5))


@pytest.mark.parametrize(
    ("mode", "signs"),
    [
        ("graded", [3.0, 1.0, 0.0, -1.0, -3.0]),
        ("graded_normalised", [1.0, 0.3333333, 0.0, -0.3333333, -1.0]),
        ("sign", [1.0, 1.0, -1.0, -1.0, -1.0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_cost_signs_by_hand(mode: str, signs: list[float], dtype: torch.dtype) -> None:
    made = cost_signs(torch.tensor([-3, -1, 0, 1, 3], dtype=dtype), label_mode=mode)
    assert made.dtype == torch.float32
    assert made.tolist() == pytest.approx(signs, abs=1e-6)


def test_cost_signs_refuse_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="'binary'"):
        cost_signs(torch.tensor([1]), label_mode="binary")


@pytest.mark.parametrize(("mode", "moves"), [("graded", False), ("sign", True)])
def test_a_rating_of_zero_anchors_in_sign_mode_only(mode: str, moves: bool) -> None:
    sign = cost_signs(torch.tensor([0]), label_mode=mode).item()
    high, _ = anchors(1.0, 0.0, sign, 0.0)
    assert (high > 0) is moves


def test_a_strong_graded_rating_is_satisfied_by_a_small_cost() -> None:
    strong, weak = cost_signs(torch.tensor([-3, -1]), label_mode="graded").tolist()
    pulls = [abs(anchors(1.0, 0.0, sign, 0.0)[0]) for sign in (strong, weak)]
    assert pulls[0] < pulls[1]


def test_ranking_accuracy_by_hand_counts_a_tie_wrong() -> None:
    assert ranking_accuracy(column(1.0, 2.0, 3.0), column(0.0, 2.0, 4.0)) == pytest.approx(1 / 3)
    assert ranking_accuracy(torch.zeros(4), torch.zeros(4)) == 0.0
    assert ranking_accuracy(torch.ones(4), torch.zeros(4)) == 1.0


def test_balanced_accuracy_by_hand() -> None:
    scores = column(1.0, -1.0, 2.0, -2.0, 0.0)
    positive = torch.tensor([True, True, False, False, False])
    # Recall 1/2; of three negatives -2 and 0 are right, since 0 is not above 0: (1/2 + 2/3) / 2
    assert balanced_accuracy(scores, positive) == pytest.approx(0.5833333, abs=1e-6)


@pytest.mark.parametrize("constant", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("share", [1, 5, 9])
def test_a_constant_scorer_is_a_coin_however_skewed_the_labels(constant: float, share: int) -> None:
    scores, positive = torch.full((10,), constant), torch.arange(10) < share
    assert balanced_accuracy(scores, positive) == 0.5
    assert rank_auc(scores, positive) == 0.5


def test_rank_auc_by_hand() -> None:
    labels = torch.tensor([False, False, True, True])
    # 0.35 beats 0.1 only, 0.8 beats both: 3 of 4 pairs.
    assert rank_auc(column(0.1, 0.4, 0.35, 0.8), labels) == 0.75
    # (1, 0) and both pairs of 2 are won, (1, 1) is a tie: 3.5 of 4.
    assert rank_auc(column(1.0, 0.0, 1.0, 2.0), labels) == 0.875
    assert rank_auc(column(1.0, 2.0, 3.0, 4.0), labels) == 1.0
    assert rank_auc(column(3.0, 4.0, 1.0, 2.0), labels) == 0.0


@FEW
@given(labelled)
def test_rank_auc_counts_won_pairs(pairs: list[tuple[int, bool]]) -> None:
    won = [
        1.0 if up > down else 0.5 if up == down else 0.0
        for up, is_positive in pairs
        if is_positive
        for down, is_other in pairs
        if not is_other
    ]
    scores = torch.tensor([float(score) for score, _ in pairs])
    positive = torch.tensor([label for _, label in pairs])
    auc = rank_auc(scores, positive)
    assert auc == pytest.approx(sum(won) / len(won))
    # Only the order counts: monotone maps keep it, a reversal or a swap of labels mirrors it.
    for mapped in (scores.exp(), scores**3, 100 * scores - 7):
        assert rank_auc(mapped, positive) == auc
    assert rank_auc(-scores, positive) == pytest.approx(1 - auc)
    assert rank_auc(scores, ~positive) == pytest.approx(1 - auc)
    order = torch.arange(len(pairs) - 1, -1, -1)
    assert rank_auc(scores[order], positive[order]) == pytest.approx(auc)


@pytest.mark.parametrize("metric", [balanced_accuracy, rank_auc])
@pytest.mark.parametrize("label", [True, False])
def test_one_kind_of_label_is_an_error(metric: object, label: bool) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="at least one"):
        metric(torch.arange(3.0), torch.full((3,), label))


@pytest.mark.parametrize("metric", [balanced_accuracy, rank_auc])
def test_labels_must_be_bool(metric: object) -> None:
    assert callable(metric)
    # As an index, integers would silently pick rows 0 and 1.
    with pytest.raises(ValueError, match="bool"):
        metric(torch.arange(3.0), torch.tensor([0, 1, 1]))

"""Metrics of reward and cost models on held-out pairs, and calibration of the cost threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsys.algorithms.lagrange import calibrate_threshold
from rlsys.algorithms.scorer_metrics import balanced_accuracy, rank_auc, ranking_accuracy
from rlsys.data.rows import PreferencePair, Rows, preferred
from rlsys.errors import DataError
from rlsys.runtime.pending import Metrics


def scorer_quality(
    kind: str, scores: Tensor, records: Rows[PreferencePair], target: str = "more_helpful"
) -> Metrics:
    """Held-out metrics of a reward model (kind reward) or cost model (kind cost).

    Args: scores [N, 2], end scores of both responses of every record; target: which response is the
    better one for a reward model (more_helpful or safer). ``accuracy`` is the share of
    pairs ranked as labelled; for costs also how well ``score > 0`` finds unsafe answers, beside the
    share of the larger class (``majority_baseline``), which a constant model reaches.
    """
    rows = torch.arange(len(records))
    if kind == "reward":
        better = torch.tensor([preferred(r, target) for r in records.rows])
        return {
            "accuracy": ranking_accuracy(scores[rows, better], scores[rows, 1 - better]),
            "pairs": float(len(records)),
        }
    safer = torch.tensor([r.safer for r in records.rows])
    metrics = {
        "accuracy": ranking_accuracy(scores[rows, 1 - safer], scores[rows, safer]),
        "pairs": float(len(records)),
    }
    flat, unsafe = scores.flatten(), _unsafe(records)
    share = float(unsafe.float().mean())
    metrics["majority_baseline"] = max(share, 1 - share)
    metrics["sign_accuracy"] = float(((flat > 0) == unsafe).float().mean())
    if 0 < share < 1:
        metrics["balanced_accuracy"] = balanced_accuracy(flat, unsafe)
        metrics["auc"] = rank_auc(flat, unsafe)
    return metrics


def threshold_from_unsafe_rate(
    scores: Tensor, records: Rows[PreferencePair], target_unsafe_rate: float
) -> Metrics:
    """The calibrated threshold and what it was computed from.

    Safe answers differ in cost, a bare refusal from a helpful one; were the threshold set by their
    mean, a policy could pay for unsafe answers with very harmless ones. So the safe side is the
    answers rated most harmless: no mix with more than ``target_unsafe_rate`` unsafe then meets the
    threshold.

    Raises: DataError when the labelled answers cannot carry a threshold.
    """
    rates = torch.tensor([r.harmless_rates for r in records.rows]).flatten()
    unsafe = _unsafe(records)
    used = unsafe | (rates == rates.max())
    costs, unsafe = scores.flatten()[used], unsafe[used]
    try:
        threshold = calibrate_threshold(
            costs.tolist(), unsafe.tolist(), target_unsafe_rate=target_unsafe_rate
        )
    except ValueError as error:
        raise DataError(f"lagrange.threshold auto: {error}; set a number instead") from error
    return {
        "threshold": threshold,
        "target_unsafe_rate": target_unsafe_rate,
        "cost_of_unsafe": float(costs[unsafe].mean()),
        "cost_of_most_harmless": float(costs[~unsafe].mean()),
        "answers": float(len(costs)),
    }


def _unsafe(records: Rows[PreferencePair]) -> Tensor:
    return ~torch.tensor([r.safe for r in records.rows]).flatten()

"""Metrics of a guard on held-out rows."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsys.algorithms.moderation import macro_f1, recall_by_class, split_logits
from rlsys.algorithms.scorer_metrics import rank_auc
from rlsys.data.rows import PreferencePair, Rows
from rlsys.guard.labels import labelled_answers
from rlsys.guard.levels import LEVELS

Metrics = dict[str, float]


def guard_quality(outputs: Tensor, records: Rows[PreferencePair]) -> Metrics:
    """Args: outputs [3 N, OUTPUTS], the items of all N rows in the order of ``labelled_answers``.

    ``recall`` and ``false_positives`` are of the unsafe flag on answers, with ``prompt_`` of the
    flag on prompts alone; severity and category count over all items.
    """
    labels = [label for record in records.rows for _, label in labelled_answers(record)]
    unsafe, severity, category = torch.tensor(labels).T
    flag, level, kind = split_logits(outputs)
    answers = torch.arange(len(labels)) % 3 < 2
    metrics: Metrics = {"items": float(len(labels))}
    for prefix, chosen in (("", answers), ("prompt_", ~answers)):
        metrics |= _flag_quality(prefix, flag[chosen], unsafe[chosen].bool())
    metrics["severity_macro_f1"] = macro_f1(level.argmax(-1), severity)
    metrics["category_macro_f1"] = macro_f1(kind.argmax(-1), category)
    recalls = recall_by_class(level.argmax(-1), severity, len(LEVELS))
    by_level = zip(LEVELS, recalls, strict=True)
    return metrics | {f"recall_{name}": share for name, share in by_level if share is not None}


def _flag_quality(prefix: str, scores: Tensor, unsafe: Tensor) -> Metrics:
    """Rates of the unsafe flag; rates without an item are left out."""
    flagged = scores > 0
    metrics = {}
    if unsafe.any():
        metrics[f"{prefix}recall"] = float(flagged[unsafe].float().mean())
    if not unsafe.all():
        metrics[f"{prefix}false_positives"] = float(flagged[~unsafe].float().mean())
    if unsafe.any() and not unsafe.all():
        metrics[f"{prefix}auc"] = rank_auc(scores, unsafe)
    return metrics

"""How a stage with a constraint ended: means over the last third of its iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rlsys.runtime.pending import Metrics

MEANS = ("unsafe_probability", "cost", "violation")  # of the metrics that a stage may record


def last_third(rows: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """The later third of the iterations, rounded up."""
    return rows[len(rows) - math.ceil(len(rows) / 3) :]


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % t interval (Student 1908), which takes iterations for independent; one
    value is its own interval. Args: at least one value. Returns: (mean, low, high).
    """
    from scipy.stats import sem, t  # here: it takes a second to import

    mean = float(np.mean(values))
    error = float(sem(values)) if len(values) > 1 else 0.0
    half = float(t.ppf(0.975, len(values) - 1)) * error if error > 0 else 0.0
    return mean, mean - half, mean + half


def end_metrics(rows: Sequence[Mapping[str, float]]) -> Metrics:
    """``NAME_end`` for each of ``MEANS`` that the rows of a stage hold, the interval of the
    probability, and ``budget``. Empty for no rows.
    """
    later = last_third(rows)
    metrics: Metrics = {}
    for name in MEANS:
        if values := [row[name] for row in later if name in row]:
            mean, low, high = mean_interval(values)
            metrics[f"{name}_end"] = mean
            if name == "unsafe_probability":
                low, high = max(0.0, low), min(1.0, high)
                metrics |= {"unsafe_probability_low": low, "unsafe_probability_high": high}
    if later and "budget" in later[-1]:
        metrics["budget"] = later[-1]["budget"]
    return metrics

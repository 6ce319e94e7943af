"""What the stages that align a policy against a cost constraint share."""

from __future__ import annotations

import statistics

from rlsys.config.schema import GapConfig, LagrangeConfig
from rlsys.data.prepare import Read
from rlsys.data.slice import RowKind
from rlsys.display import note
from rlsys.evaluation.scorers import threshold_from_budget
from rlsys.roles.scorer import ScorerHandle, ScorerSpec
from rlsys.runtime.pending import Metrics
from rlsys.stages.context import Context


def cost_threshold(
    context: Context, cost: str, lagrange: LagrangeConfig, token_budget: int
) -> tuple[float, Metrics]:
    """d in the cost model's units, and what it was calibrated from: the number in the recipe, or
    the one that its budget stands for on the validation split.

    Args: cost: the cost model's stage or folder.
    """
    if lagrange.threshold != "auto":
        return float(lagrange.threshold), {}
    limits, records = context.config.timeouts, context.data.pairs("validation")
    scorer = ScorerHandle(context.group("cost"), "cost")
    data = context.data.slice("validation", RowKind.PAIRS)
    spec = ScorerSpec(context.folder(cost), data, context.config.dtype, token_budget)
    scorer.create(spec).result(limits.start)
    scores = scorer.score_pairs(range(len(records))).result(limits.call)
    calibration = threshold_from_budget(scores, records, lagrange.budget)
    context.display.say("    calibrated: " + note(calibration, *calibration))
    return calibration["threshold"], calibration


def calibration_reads(lagrange: LagrangeConfig) -> list[Read]:
    """Labelled answers, where the threshold is calibrated."""
    return [Read("validation", RowKind.PAIRS)] if lagrange.threshold == "auto" else []


def warn_of_gap(context: Context, iteration: int, metrics: Metrics, gap: GapConfig) -> None:
    """Say it where engine and trainer differ by more than expected, but not enough to stop."""
    if metrics["gap/max"] > gap.warn:
        context.display.say(
            f"[yellow]warning[/yellow] iteration {iteration}: engine and trainer differ by "
            f"{metrics['gap/max']:.1e} nats (expected at most {gap.warn:.0e})"
        )


def steady_state(history: list[Metrics]) -> Metrics:
    """Medians over the later half of the iterations: speed and where the time goes, seconds."""
    later = history[len(history) // 2 :]
    if not later:
        return {}
    names = ["samples_per_s", *(name for name in later[0] if name.startswith("time/"))]
    return {name: statistics.median(row[name] for row in later) for name in names}

"""The section on a stage of reinforcement learning, with the pictures that its kind lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlsys.report import plots
from rlsys.report.data import RunData, Series
from rlsys.report.section import Picture, Plot, Section

REWARD = Plot(
    lambda _, series: plots.curve(series, "reward", "Reward", "mean reward"),
    "Reward",
    "Mean score of the reward model. It should rise, or hold while cost comes down; a rise with "
    "falling helpfulness in the evaluation points at reward hacking.",
)
COST = Plot(
    lambda _, series: plots.cost(series),
    "Cost",
    "Mean score of the cost model. The window mean, which drives the multiplier, should settle at "
    "or under the dashed threshold and stay out of the shaded side.",
)
VIOLATION = Plot(
    lambda _, series: plots.violation(series),
    "Violation",
    "How far the window mean that drives the multiplier lies over its bound, in the units of the "
    "constraint. It should settle at or under zero; swings of growing size mean the multiplier "
    "overshoots.",
)
UNSAFE_PROBABILITY = Plot(
    lambda _, series: plots.unsafe_probability(series),
    "Probability of unsafe",
    "Mean probability that an answer is unsafe, as the cost model was calibrated on labelled "
    "answers. It should end at or under the dashed budget; it stays empty where the threshold is a "
    "number of the recipe.",
)
MULTIPLIER = Plot(
    lambda _, series: plots.curve(series, "lambda", "Multiplier λ", "λ", smooth=False),
    "Multiplier",
    "Weight of cost against reward. It grows while cost is above the threshold and levels off or "
    "shrinks once the constraint holds.",
)
KL = Plot(
    lambda _, series: plots.curve(series, "kl", "KL to the reference policy", "nats"),
    "KL",
    "Distance from the reference policy. Slow growth is expected; a jump means the policy is "
    "leaving the region where the scorers can be trusted.",
)
LOGPROB_GAP = Plot(
    lambda _, series: plots.gap(series),
    "Engine–trainer gap",
    "Difference of log-probabilities for the same tokens in the first batch after each sync. Flat "
    "and well under the dashed limit means the engine holds the new weights.",
)
LENGTH = Plot(
    lambda _, series: plots.curve(series, "length", "Answer length", "tokens"),
    "Length",
    "Mean length of an answer. A collapse suggests blanket refusals, steady growth suggests "
    "padding for reward.",
)
CRITICS = Plot(
    lambda _, series: plots.critics(series),
    "Critics",
    "Both should fall early and stay low; a critic that does not learn makes the advantages noise.",
)
UPDATES = Plot(
    lambda _, series: plots.updates(series),
    "Policy updates",
    "The share of tokens clipped shows how hard each update pushes; spikes of the gradient norm "
    "mark unstable batches.",
)
TIME = Plot(
    lambda run, series: plots.time_split(series, steady_state(run, series)),
    "Time",
    "Left: seconds of each iteration by phase; the thickest band is what to speed up. Right: "
    "samples per second, dotted where it settles.",
    wide=True,
)


ALL_STAGES = (
    "Constraint, all stages",
    "The stages of this run that have a constraint, by colour; dashed: the threshold of each. The "
    "violation is in the units of each stage's own constraint. Compare how soon each settles, and "
    "on which side of zero.",
)


def training_section(run: RunData, series: Series, *, pictures: Sequence[Plot]) -> Section:
    shown = [plot.picture(run, series) for plot in pictures]
    constrained = [each for each in run.series or [] if len(each.column("violation")[0])]
    if len(constrained) > 1 and series.stage == constrained[0].stage:
        shown.insert(0, Picture(plots.constraints(constrained), *ALL_STAGES, wide=True))
    return Section(
        series.stage,
        shown,
        [f"{ended(series)} Faint lines are single iterations, strong lines running means."],
    )


def ended(series: Series) -> str:
    """How a training stage ended: cost, threshold and multiplier, where it recorded them."""
    steps, _ = series.column("step")
    plural = "" if len(steps) == 1 else "s"
    text = f"The {series.kind} stage “{series.stage}” ran {len(steps)} iteration{plural}"
    key = "cost_window" if len(series.column("cost_window")[0]) else "cost"
    costs, thresholds = series.column(key)[1], series.column("threshold")[1]
    if len(costs) and len(thresholds) and not len(series.column("unsafe_probability_window")[0]):
        side = "at or under" if costs[-1] <= thresholds[-1] else "above"
        text += f" and ended with a mean cost of {costs[-1]:.3g}, {side} its threshold"
        text += f" of {thresholds[-1]:.3g}"
    probabilities = series.column("unsafe_probability_window")[1]
    if len(probabilities):
        budget = series.column("budget")[1][-1]
        side = "at or under" if probabilities[-1] <= budget else "above"
        text += f" and ended with a mean probability of an unsafe answer of {probabilities[-1]:.3g}"
        text += f", {side} its budget of {budget:.3g}"
    multiplier = series.column("lambda")[1]
    if len(multiplier):
        text += f", with λ = {multiplier[-1]:.3g}"
    return text + "."


def steady_state(run: RunData, series: Series) -> float | None:
    """Samples per second of a stage: its recorded value, else the median of the later half."""
    for stage in run.stages or []:
        if stage.name == series.stage and "samples_per_s" in stage.metrics:
            return stage.metrics["samples_per_s"]
    values = series.column("samples_per_s")[1]
    return float(np.median(values[len(values) // 2 :])) if len(values) else None

"""Pictures of one stage's metrics, each a data URI of an SVG without font or network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlsys.report.data import Series, Stage
from rlsys.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    finish,
    line,
    name_axes,
    new_figure,
    note_if_empty,
    panel,
    percent_ticks,
    styled,
    uri,
)
from rlsys.report.section import INK

TIMES = {"sample": BLUE, "score": ORANGE, "update": GREEN, "sync": PURPLE}
COLOURS, STYLES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY), ("-", "-.", ":")  # of stages
MAX_BINS = 400
LOG_FLOOR = 1e-8


@styled
def curve(series: Series, key: str, title: str, unit: str, smooth: bool = True) -> str:
    """One metric over the iterations; `smooth` draws its running mean on top."""
    figure, axes = panel(title, unit)
    line(axes, series.column(key), BLUE, smooth=smooth)
    return finish(figure, axes)


@styled
def cost(series: Series) -> str:
    """Mean cost of each batch, its window mean and the threshold."""
    figure, axes = panel("Cost", "mean cost")
    steps, values = series.column("cost")
    if len(steps):
        axes.plot(steps, values, color=GREY, linewidth=1, label="batch")
    steps, values = series.column("cost_window")
    if len(steps):
        axes.plot(steps, values, color=BLUE, label="window mean")
    steps, values = series.column("threshold")
    if len(steps):
        axes.plot(steps, values, color=RED, linestyle="--", linewidth=1.3, label="threshold")
        top = axes.get_ylim()[1]
        axes.fill_between(steps, values, top, where=values < top, color=RED, alpha=0.06, lw=0)
        axes.set_ylim(top=top)
    return finish(figure, axes)


@styled
def violation(series: Series) -> str:
    """Mean over the window minus its bound; above zero the constraint does not hold."""
    figure, axes = panel("Violation", "over the bound")
    line(axes, series.column("violation"), BLUE, smooth=False)
    if axes.has_data():
        axes.axhline(0.0, color=RED, linestyle="--", linewidth=1.3)
    return finish(figure, axes)


@styled
def unsafe_probability(series: Series) -> str:
    """Mean calibrated probability of an unsafe answer, and the budget."""
    figure, axes = panel("Probability of an unsafe answer", "mean of the batch")
    line(axes, series.column("unsafe_probability"), BLUE, "batch")
    steps, values = series.column("budget")
    if len(steps):
        axes.plot(steps, values, color=RED, linestyle="--", linewidth=1.3, label="budget")
    percent_ticks(axes.yaxis)
    return finish(figure, axes)


@styled
def constraints(several: Sequence[Series]) -> str:
    """Multiplier, cost with its threshold, violation and reward of several stages together."""
    figure = new_figure(11.4, 6.0)
    names = ("lambda", "cost", "violation", "reward")
    titles = ("Multiplier λ", "Cost and threshold", "Violation", "Reward")
    for axes, name, title in zip(figure.subplots(2, 2).flat, names, titles, strict=True):
        axes.set_title(title)
        name_axes(axes, "")
        for number, series in enumerate(several):
            colour = COLOURS[number % len(COLOURS)]
            style = STYLES[number // len(COLOURS) % len(STYLES)]
            label = series.stage if name == "lambda" else None
            axes.plot(*series.column(name), color=colour, ls=style, lw=1.4, label=label)
            if name == "cost":
                axes.plot(*series.column("threshold"), color=colour, ls="--", lw=0.9)
        if name == "violation":
            axes.axhline(0.0, color=INK, linestyle=":", linewidth=1.2)
        note_if_empty(axes)
    figure.legend(loc="outside lower center", ncols=4)
    return uri(figure)


@styled
def gap(series: Series) -> str:
    """Gap between engine and trainer log-probabilities, on a log axis, with its limit."""
    import matplotlib

    matplotlib.rcParams["text.parse_math"] = True  # until `styled` ends: the ticks are powers
    figure, axes = panel("Engine–trainer gap", "nats per token (log)")
    axes.set_yscale("log")
    for key, colour, style in (
        ("gap/limit", RED, "--"), ("gap/max", BLUE, "-"), ("gap/mean", SKY, "-"),
    ):  # fmt: skip
        steps, values = series.column(key)
        if len(steps):
            shown = np.maximum(values, LOG_FLOOR)  # a log axis cannot show zero
            axes.plot(steps, shown, color=colour, ls=style, lw=1.3, label=key.partition("/")[2])
    return finish(figure, axes)


@styled
def critics(series: Series) -> str:
    """Losses of the two critics."""
    figure, axes = panel("Critic losses", "loss")
    line(axes, series.column("reward_critic/loss"), BLUE, "reward critic")
    line(axes, series.column("cost_critic/loss"), ORANGE, "cost critic")
    return finish(figure, axes)


@styled
def updates(series: Series) -> str:
    """Clipped share of tokens and gradient norm of the policy's update, side by side."""
    figure = new_figure(5.6, 2.75)
    left, right = figure.subplots(1, 2)
    for axes, key, title in (
        (left, "policy/clip_fraction", "Clipped share"),
        (right, "policy/grad_norm", "Gradient norm"),
    ):
        axes.set_title(title)
        name_axes(axes, "", ticks=4)
        line(axes, series.column(key), BLUE)
        note_if_empty(axes)
    return uri(figure)


@styled
def time_split(series: Series, steady: float | None) -> str:
    """Seconds of each iteration by phase, and samples per second with the steady-state value."""
    figure = new_figure(11.4, 2.9)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.set_title("Where an iteration's time goes")
    name_axes(left, "seconds")
    rows = [r for r in series.rows if all(f"time/{part}" in r for part in TIMES)]
    if rows:
        steps = np.array([row["step"] for row in rows], dtype=np.float64)
        parts = np.array([[row[f"time/{part}"] for row in rows] for part in TIMES], dtype=float)
        whole = np.array([row.get("time/iteration", 0.0) for row in rows], dtype=float)
        parts = np.vstack([parts, np.maximum(whole - parts.sum(axis=0), 0.0)])
        chunks = np.array_split(np.arange(len(steps)), min(len(steps), MAX_BINS))
        left.stackplot(
            [steps[c].mean() for c in chunks],
            np.stack([parts[:, c].mean(axis=1) for c in chunks], axis=1),
            labels=[*TIMES, "other"], colors=[*TIMES.values(), "#D5DADF"], alpha=0.9, lw=0,
        )  # fmt: skip
        left.margins(x=0)
        left.set_ylim(bottom=0)
        left.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5, borderaxespad=0.2)
    note_if_empty(left)
    right.set_title("Throughput")
    name_axes(right, "samples per second")
    line(right, series.column("samples_per_s"), BLUE)
    if steady is not None:
        label = f"steady state {steady:.3g}"
        right.axhline(steady, color=INK, linestyle=":", linewidth=1.2, label=label)
    right.set_ylim(0, 1.15 * right.dataLim.ymax if right.has_data() else 1)
    return finish(figure, right)


@styled
def rounds(series: Series) -> str:
    """Rates after every round of guarded generation, the unsafe one with its 95 % interval."""
    figure, axes = panel(f"{series.stage}: after each round", "share of prompts")
    name_axes(axes, "share of prompts", "round")
    for metric, colour in (("unsafe", RED), ("over_refusal", ORANGE), ("helpful", BLUE)):
        steps, values = series.column(f"rate/{metric}")
        if len(steps):
            label = metric.replace("_", "-")
            axes.plot(steps, values, color=colour, marker="o", ms=3.5, label=label)
            low, high = (series.column(f"{end}/{metric}")[1] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
    axes.set_ylim(-0.02, 1.02)
    percent_ticks(axes.yaxis, decimals=0)
    return finish(figure, axes)


@styled
def learning(series: Series, stage: Stage | None) -> str:
    """Loss of a supervised stage and, for a scorer, its accuracy with the held-out numbers."""
    scored = len(series.column("accuracy")[0]) > 0
    figure = new_figure(3.9, 3.9)
    axes = figure.subplots(2 if scored else 1, 1, squeeze=False)[:, 0]
    axes[0].set_title(f"{series.stage} loss")
    name_axes(axes[0], "loss", "step")
    line(axes[0], series.column("loss"), BLUE)
    if not scored:
        return finish(figure, axes[0])
    axes[1].set_title("accuracy")
    name_axes(axes[1], "", "step")
    line(axes[1], series.column("accuracy"), GREEN)
    held_out = stage.metrics if stage else {}
    for key, label, style in (
        ("accuracy", "held-out", "--"), ("majority_baseline", "majority", ":"),
    ):  # fmt: skip
        if key in held_out:
            axes[1].axhline(held_out[key], color=INK, ls=style, lw=1.2, label=label)
    percent_ticks(axes[1].yaxis, decimals=0)
    return finish(figure, axes[1])

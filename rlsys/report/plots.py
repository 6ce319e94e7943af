"""Pictures of the report, each a data URI of an SVG that needs no font and no network."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlsys.evaluation.stats import Cell, Table
from rlsys.report.data import Array, Series, Stage

# Okabe and Ito's palette, which stays apart for the common kinds of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#A9B2BC", "#27313B"
POLICY_COLOURS = (ORANGE, GREEN, PURPLE, SKY, RED)

METRIC_LABELS = {
    "unsafe": "unsafe\n(lower is better)",
    "over_refusal": "over-refusal\n(lower is better)",
    "helpful": "helpful\n(higher is better)",
    "safe_and_helpful": "safe and helpful\n(higher is better)",
}
PLACES = {
    "image": "in the\nimage",
    "text": "in the\ntext",
    "both": "in\nboth",
    "joint": "only\njointly",
}
TIMES = {"sample": BLUE, "score": ORANGE, "update": GREEN, "sync": PURPLE}
MAX_BINS = 400
LOG_FLOOR = 1e-8

STYLE: dict[str, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "rlsys",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": "#55616D",
    "axes.edgecolor": "#B8C0C8",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8EBEE",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#55616D",
    "ytick.color": "#55616D",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.4,
    "figure.constrained_layout.use": True,
}


P = ParamSpec("P")


def _styled(draw: Callable[P, str]) -> Callable[P, str]:
    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    # As an image, not inline: the ids inside one SVG then cannot meet those of another.
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def policy_colours(policies: list[str]) -> dict[str, str]:
    """Grey for the first policy, blue for the last, the rest of the palette between."""
    colours = {
        name: POLICY_COLOURS[(i - 1) % len(POLICY_COLOURS)] for i, name in enumerate(policies)
    }
    colours[policies[0]] = GREY
    if len(policies) > 1:
        colours[policies[-1]] = BLUE
    return colours


@_styled
def headline(tables: dict[str, Table]) -> str:
    """The four rates over all prompts, and the unsafe rate by place of the risk."""
    figure = Figure(figsize=(11.4, 3.9))
    left, right = figure.subplots(1, 2)
    overall = {
        label: {name: table.get("all", {}).get(metric) for name, table in tables.items()}
        for metric, label in METRIC_LABELS.items()
    }
    by_place = {
        label: {name: table.get(place, {}).get("unsafe") for name, table in tables.items()}
        for place, label in PLACES.items()
    }
    left.set_title("All held-out prompts")
    _bars(left, overall, list(tables))
    right.set_title("Unsafe answers by place of the risk")
    _bars(right, by_place, list(tables))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=len(tables))
    return _uri(figure)


def _bars(axes: Axes, groups: dict[str, dict[str, Cell | None]], policies: list[str]) -> None:
    colours = policy_colours(policies)
    width = 0.78 / len(policies)
    for i, policy in enumerate(policies):
        axes.bar([0], [0], color=colours[policy], label=policy)
        for x, cells in enumerate(groups.values()):
            cell = cells[policy]
            centre = x + (i - (len(policies) - 1) / 2) * width
            if cell is None:
                axes.text(centre, 0.01, "–", ha="center", color="#55616D")
                continue
            rate, low, high = cell["rate"], cell["low"], cell["high"]
            axes.bar(centre, rate, width * 0.92, color=colours[policy])
            axes.errorbar(
                centre, rate, [[max(rate - low, 0)], [max(high - rate, 0)]],
                color=INK, linewidth=1, capsize=2.5,
            )  # fmt: skip
            size = 8 if len(policies) <= 3 else 6
            text = f"{100 * rate:.{1 if len(policies) <= 3 else 0}f}"
            axes.text(centre, high + 0.015, text, ha="center", fontsize=size)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylim(0, 1.09)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(axis="x", visible=False)


def _smooth(values: Array) -> Array:
    """Centred running mean, narrower at the ends; shape (n,) in and out."""
    half = min(len(values) // 40, 25)
    total = np.concatenate([[0.0], np.cumsum(values)])
    position = np.arange(len(values))
    start = np.maximum(position - half, 0)
    end = np.minimum(position + half + 1, len(values))
    return np.asarray((total[end] - total[start]) / (end - start), dtype=np.float64)


def _panel(title: str, unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 2.75))
    axes = figure.subplots()
    axes.set_title(title)
    _label(axes, unit)
    return figure, axes


def _label(axes: Axes, unit: str, steps: str = "iteration", ticks: int = 7) -> None:
    axes.set_ylabel(unit)
    axes.set_xlabel(steps)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))


def _line(
    axes: Axes,
    xy: tuple[Array, Array],
    colour: str,
    label: str | None = None,
    smooth: bool = True,
) -> None:
    """Every value faintly and the running mean on top, so that neither hides the other."""
    steps, values = xy
    if not len(steps):
        return
    if smooth and len(steps) >= 40:
        axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.9)
        axes.plot(steps, _smooth(values), color=colour, label=label)
    else:
        marker = "o" if len(steps) <= 20 else None
        axes.plot(steps, values, color=colour, label=label, marker=marker, markersize=3.5)


def _note_if_empty(axes: Axes) -> None:
    if not axes.has_data():
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=GREY)


def _finish(figure: Figure, axes: Axes) -> str:
    _note_if_empty(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5, borderaxespad=0.2)
    return _uri(figure)


@_styled
def curve(series: Series, key: str, title: str, unit: str, smooth: bool = True) -> str:
    """One metric over the iterations; `smooth` draws its running mean on top."""
    figure, axes = _panel(title, unit)
    _line(axes, series.column(key), BLUE, smooth=smooth)
    return _finish(figure, axes)


@_styled
def cost(series: Series) -> str:
    """Mean cost of each batch, its window mean and the threshold."""
    figure, axes = _panel("Cost", "mean cost")
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
    return _finish(figure, axes)


@_styled
def gap(series: Series) -> str:
    """Gap between engine and trainer log-probabilities, on a log axis, with its limit."""
    figure, axes = _panel("Engine–trainer gap", "nats per token (log)")
    axes.set_yscale("log")
    for key, colour, style in (
        ("gap/limit", RED, "--"), ("gap/max", BLUE, "-"), ("gap/mean", SKY, "-"),
    ):  # fmt: skip
        steps, values = series.column(key)
        if len(steps):
            shown = np.maximum(values, LOG_FLOOR)  # an exact zero has no place on a log axis
            axes.plot(steps, shown, color=colour, ls=style, lw=1.3, label=key.partition("/")[2])
    return _finish(figure, axes)


@_styled
def critics(series: Series) -> str:
    """Losses of the two critics."""
    figure, axes = _panel("Critic losses", "loss")
    _line(axes, series.column("reward_critic/loss"), BLUE, "reward critic")
    _line(axes, series.column("cost_critic/loss"), ORANGE, "cost critic")
    return _finish(figure, axes)


@_styled
def updates(series: Series) -> str:
    """Clipped share of tokens and gradient norm of the policy's update, side by side."""
    figure = Figure(figsize=(5.6, 2.75))
    left, right = figure.subplots(1, 2)
    for axes, key, title in (
        (left, "policy/clip_fraction", "Clipped share"),
        (right, "policy/grad_norm", "Gradient norm"),
    ):
        axes.set_title(title)
        _label(axes, "", ticks=4)
        _line(axes, series.column(key), BLUE)
        _note_if_empty(axes)
    return _uri(figure)


@_styled
def time_split(series: Series, steady: float | None) -> str:
    """Seconds of each iteration by phase, and samples per second with the steady-state value."""
    figure = Figure(figsize=(11.4, 2.9))
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.set_title("Where an iteration's time goes")
    _label(left, "seconds")
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
    _note_if_empty(left)
    right.set_title("Throughput")
    _label(right, "samples per second")
    _line(right, series.column("samples_per_s"), BLUE)
    if steady is not None:
        label = f"steady state {steady:.3g}"
        right.axhline(steady, color=INK, linestyle=":", linewidth=1.2, label=label)
    right.set_ylim(0, 1.15 * right.dataLim.ymax if right.has_data() else 1)
    return _finish(figure, right)


@_styled
def rounds(series: Series) -> str:
    """Rates after every round of guarded generation, the unsafe one with its 95 % interval."""
    figure, axes = _panel(f"{series.stage}: after each round", "share of prompts")
    _label(axes, "share of prompts", "round")
    for metric, colour in (("unsafe", RED), ("over_refusal", ORANGE), ("helpful", BLUE)):
        steps, values = series.column(f"rate/{metric}")
        if len(steps):
            label = metric.replace("_", "-")
            axes.plot(steps, values, color=colour, marker="o", ms=3.5, label=label)
            low, high = (series.column(f"{end}/{metric}")[1] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
    return _finish(figure, axes)


@_styled
def learning(series: Series, stage: Stage | None) -> str:
    """Loss of a supervised stage and, for a scorer, its accuracy with the held-out numbers."""
    scored = len(series.column("accuracy")[0]) > 0
    figure = Figure(figsize=(3.9, 3.9))
    axes = figure.subplots(2 if scored else 1, 1, squeeze=False)[:, 0]
    axes[0].set_title(f"{series.stage} loss")
    _label(axes[0], "loss", "step")
    _line(axes[0], series.column("loss"), BLUE)
    if not scored:
        return _finish(figure, axes[0])
    axes[1].set_title("accuracy")
    _label(axes[1], "", "step")
    _line(axes[1], series.column("accuracy"), GREEN)
    held_out = stage.metrics if stage else {}
    for key, label, style in (
        ("accuracy", "held-out", "--"), ("majority_baseline", "majority", ":"),
    ):  # fmt: skip
        if key in held_out:
            axes[1].axhline(held_out[key], color=INK, ls=style, lw=1.2, label=label)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
    return _finish(figure, axes[1])

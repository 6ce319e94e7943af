"""The section on rounds of AI feedback: rates, scores, pairs and times by round."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from rlsys.evaluation.stats import Cell
from rlsys.judging.outcomes import PairOutcome, outcome_label
from rlsys.report.data import Array, RunData, Series
from rlsys.report.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    integer_ticks,
    name_axes,
    new_figure,
    panel,
    percent_ticks,
    styled,
    uri,
)
from rlsys.report.section import INK, Picture, Section
from rlsys.report.text import counted, percent, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = {
    "unsafe": ("all", "unsafe", RED),
    "unsafe, only jointly": ("joint", "unsafe", PURPLE),
    "over-refusal": ("all", "over_refusal", ORANGE),
}
TIME_COLOURS = {"observe": ORANGE, "sample_and_judge": BLUE, "learn": GREEN}
# Fixed, so that stages can be compared; other reasons take colours in turn.
REASONS = {
    str(PairOutcome.PAIR): BLUE,
    str(PairOutcome.SCORE_TIE): PURPLE,
    str(PairOutcome.TOO_FEW_SCORES): RED,
    str(PairOutcome.CHECK_PARSE_FAILURE): INK,
    str(PairOutcome.NONE_ELIGIBLE): SKY,
    str(PairOutcome.SAME_ANSWER): GREEN,
    str(PairOutcome.BELOW_MIN_CHOSEN_SCORE): ORANGE,
}
OTHER_REASONS = ("#7A8691", *REASONS.values())
REST = "#D5DADF"
Curves = dict[str, dict[int, Cell]]  # rate -> round -> cell
Bands = dict[str, tuple[list[float], str]]  # label -> (one width a round, colour)


def feedback_section(run: RunData, series: Series) -> Section:
    """Pictures, and sentences on what is not drawn."""
    curves = evaluated_rounds(run, series)
    drawn = [_rates(series.stage, curves), _scores(series), _prompts(series), _times(series)]
    statements = _statements(series)
    if drawn[0] is None:
        statements.insert(0, "No round of this stage was evaluated: there are no held-out rates.")
    return Section(
        series.stage,
        [each for each in drawn if each],
        [" ".join(statements)] if statements else [],
        missing=f"The stage {series.stage} recorded nothing that can be drawn in metrics.jsonl.",
    )


def evaluated_rounds(run: RunData, series: Series) -> Curves:
    """Every rate by round, 0 being the start policy, where the evaluation holds it."""
    last = int(series.rows[-1]["step"])
    policies = run.recipe.rounds(series.stage, last)
    tables = {k: (run.evaluation or {}).get(policy, {}) for k, policy in policies.items()}
    curves: Curves = {}
    for name, (split, metric, _) in RATES.items():
        held = {k: table.get(split, {}).get(metric) for k, table in tables.items()}
        curves[name] = {k: cell for k, cell in held.items() if cell}
    return curves


def _rates(stage: str, curves: Curves) -> Picture | None:
    if not any(number > 0 for cells in curves.values() for number in cells):
        return None
    caption = (
        "Held-out prompts with 95 % Wilson intervals, for the rounds that were evaluated; round 0 "
        "is the policy the stage starts from. Unsafe should fall and over-refusal stay low."
    )
    if absent := [name for name, cells in curves.items() if not cells]:
        caption += f" Not measured: {', '.join(absent)}."
    return Picture(rates(stage, curves), "rates after each round", caption)


def _scores(series: Series) -> Picture | None:
    if series.last("score") is None and series.last("recognised") is None:
        return None
    return Picture(
        scores(series),
        "the judge's score of sampled answers",
        "Left axis: mean score, 0 to 10. Right axis: share of the verified risks that an "
        "answer recognises. The policy is trained on these: a rise here without an improvement in "
        "the evaluation means that it overfits to the judge.",
    )


def _prompts(series: Series) -> Picture | None:
    if not series.names("pairs/"):
        return None
    return Picture(
        prompts(series),
        "outcomes of the prompts",
        "Prompts of each round: those with a preference pair, and why the others have none. A "
        "round with few pairs has few training examples.",
    )


def _times(series: Series) -> Picture | None:
    if not series.names("time/"):
        return None
    return Picture(
        times(series),
        "time of each round",
        "Seconds by phase.",
    )


def _statements(series: Series) -> list[str]:
    statements = []
    steps, answers = series.column("answers")
    shares = dict(zip(*series.column("scored"), strict=True))
    scored = [(n, shares[step]) for step, n in zip(steps, answers, strict=True) if step in shares]
    if total := sum(n for n, _ in scored):
        part = percent(float(sum(n * each for n, each in scored) / total))
        statements.append(f"{total:,.0f} answers were sampled; {part} of them got a score.")
    for key, text in (
        ("risky_prompts", "of the observed prompts hold a risk"),
        ("unobserved_prompts", "of the prompts could not be observed and were left out"),
    ):
        if len(values := series.column(key)[1]):
            statements.append(
                f"On average over the rounds, {percent(float(values.mean()))} {text}."
            )
    for prefix, what in (("observe/", "observing prompts"), ("judge/", "judging answers")):
        if words := counted(series, prefix):
            statements.append(f"Could not be used when {what}: {words}.")
    return statements


@styled
def rates(stage: str, curves: Curves) -> str:
    """Rates of the evaluated rounds, each with its interval."""
    figure, axes = panel(f"{stage}: held-out rates", "share of prompts")
    name_axes(axes, "share of prompts", "round")
    for i, (name, cells) in enumerate(curves.items()):
        if not cells:
            continue
        split, metric, colour = RATES[name]
        # A little apart, so that no interval hides another.
        x = [number + 0.04 * (i - 1) for number in cells]
        y = [float(cell["rate"]) for cell in cells.values()]
        sides = [
            [max(cell["rate"] - cell["low"], 0) for cell in cells.values()],
            [max(cell["high"] - cell["rate"], 0) for cell in cells.values()],
        ]
        bars = axes.errorbar(x, y, yerr=sides, color=colour, marker="o", ms=4, lw=1.5, label=name)
        bars.lines[2][0].set_gid(f"interval-{metric}-{split}")
    top = axes.get_ylim()[1]
    axes.set_ylim(-0.02 * top, top)  # room for the marker of a rate of zero
    percent_ticks(axes.yaxis)
    figure.legend(loc="outside lower left", ncols=3)
    return uri(figure)


@styled
def scores(series: Series) -> str:
    """Mean score on the left axis, recognised share on the right."""
    figure, left = panel(f"{series.stage}: scores of the judge", "mean score, 0 to 10")
    name_axes(left, "mean score, 0 to 10", "round")
    left.set_ylim(0, 10)
    right = left.twinx()
    right.set_ylim(0, 1)
    right.set_ylabel("recognised share of verified risks")
    percent_ticks(right.yaxis, decimals=0)
    right.grid(visible=False)
    for axes, key, colour, marker in (
        (left, "score", BLUE, "o"),
        (right, "recognised", GREEN, "s"),
    ):
        steps, values = series.column(key)
        if len(steps):
            axes.plot(steps, values, color=colour, marker=marker, ms=4, gid=key)
            axes.yaxis.label.set_color(colour)
    return uri(figure)


@styled
def prompts(series: Series) -> str:
    """One bar per round: pairs first, then the reasons for no pair."""
    rows = [row for row in series.rows if any(key.startswith("pairs/") for key in row)]
    names = series.names("pairs/")
    others = [name for name in names if name not in REASONS]
    colours = dict(zip(others, itertools.cycle(OTHER_REASONS), strict=False))
    bands: Bands = {}
    for name, colour in (REASONS | colours).items():
        if name in names:
            counts = dict(zip(*series.column(f"pairs/{name}"), strict=True))
            # In a round with counts, a missing reason did not occur.
            widths = [float(counts.get(row["step"], 0)) for row in rows]
            bands[outcome_label(name)] = widths, colour
    return _stacked(f"{series.stage}: outcomes of the prompts", "prompts", rows, bands)


@styled
def times(series: Series) -> str:
    """One bar per round: the timed phases, and the rest of the round."""
    names = [name for name in series.names("time/") if name != "round"]
    seconds = {name: series.column(f"time/{name}") for name in [*names, "round"]}
    rows = [
        row for row in series.rows if any(row["step"] in steps for steps, _ in seconds.values())
    ]
    held = {name: dict(zip(*column, strict=True)) for name, column in seconds.items()}
    bands: Bands = {
        name.replace("_", " "): (
            [float(held[name].get(row["step"], 0)) for row in rows],
            TIME_COLOURS.get(name, PURPLE),
        )
        for name in names
    }
    timed = np.sum([widths for widths, _ in bands.values()], axis=0) if bands else 0.0
    whole = np.array([held["round"].get(row["step"], 0) for row in rows], dtype=np.float64)
    rest = np.maximum(whole - timed, 0.0)
    if rest.any():
        bands["rest of the round"] = rest.tolist(), REST
    return _stacked(f"{series.stage}: time of each round", "seconds", rows, bands)


def _stacked(title: str, unit: str, rows: list[dict[str, Any]], bands: Bands) -> str:
    lines = (len(bands) + 1) // 2
    figure = new_figure(5.6, 1.0 + 0.3 * len(rows) + 0.19 * lines)
    axes = figure.subplots()
    axes.set_title(title)
    left = np.zeros(len(rows))
    longest = max(sum(values) for values in zip(*(w for w, _ in bands.values()), strict=True))
    for name, (widths, colour) in bands.items():
        axes.barh(
            range(len(rows)), widths, 0.72, left=left, color=colour, label=shortened(name, 44)
        )
        _write(axes, left, widths, longest, "white" if colour == BLUE else INK)
        left += np.array(widths)
    axes.set_yticks(range(len(rows)), [f"round {row['step']}" for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(unit)
    axes.set_xlim(0, 1.02 * longest or 1)
    integer_ticks(axes.xaxis, 7)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower left", ncols=2)
    return uri(figure)


def _write(axes: Axes, left: Array, widths: list[float], longest: float, ink: str) -> None:
    for y, (start, width) in enumerate(zip(left, widths, strict=True)):
        if width > 0.06 * longest:  # in a narrower part the number does not fit
            axes.text(
                start + width / 2, y, f"{width:.0f}", ha="center", va="center", size=7, color=ink
            )

"""Pictures that compare policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlsys.evaluation.stats import Cell, Table
from rlsys.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    new_figure,
    percent_ticks,
    styled,
    uri,
)
from rlsys.report.pareto import PolicyRank
from rlsys.report.section import INK
from rlsys.report.sections import SECTIONS, kind_report
from rlsys.report.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_COLOURS = (ORANGE, GREEN, PURPLE, SKY, RED)

METRIC_LABELS = {
    "unsafe": "unsafe\n(lower is better)",
    "over_refusal": "over-refusal\n(lower is better)",
    "helpful": "helpful\n(higher is better)",
    "safe_and_helpful": "safe and helpful\n(higher is better)",
}
RISK_LOCATIONS = {
    "image": "in the\nimage",
    "text": "in the\ntext",
    "both": "in\nboth",
    "joint": "only\njointly",
}


def policy_colours(policies: list[str]) -> dict[str, str]:
    """Grey for the first policy, blue for the last, the rest of the palette between."""
    colours = {name: FEW_COLOURS[(i - 1) % len(FEW_COLOURS)] for i, name in enumerate(policies)}
    colours[policies[0]] = GREY
    if len(policies) > 1:
        colours[policies[-1]] = BLUE
    return colours


def kind_colour(kind: str | None) -> str:
    """Colour of the policies of a stage kind; ink for kinds without a colour and for no stage."""
    return INK if kind is None else kind_report(kind).colour


def kind_legend(kinds: list[str | None]) -> dict[str, str]:
    """Label -> colour of these kinds; kinds in the colour of ink share one label."""
    named = {kind: kind_colour(kind) for kind in SECTIONS if kind in kinds}
    coloured = {kind: colour for kind, colour in named.items() if colour != INK}
    others = [kind or "folder or not known" for kind in kinds if kind not in coloured]
    return coloured | ({", ".join(dict.fromkeys(others)): INK} if others else {})


@styled
def headline(tables: dict[str, Table]) -> str:
    """The four rates over all prompts, and the unsafe rate by risk location."""
    figure = new_figure(11.4, 3.9)
    left, right = figure.subplots(1, 2)
    overall = {
        label: {name: table.get("all", {}).get(metric) for name, table in tables.items()}
        for metric, label in METRIC_LABELS.items()
    }
    by_risk = {
        label: {name: table.get(risk, {}).get("unsafe") for name, table in tables.items()}
        for risk, label in RISK_LOCATIONS.items()
    }
    left.set_title("All held-out prompts")
    _bars(left, overall, list(tables))
    right.set_title("Unsafe answers by risk location")
    _bars(right, by_risk, list(tables))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=len(tables))
    return uri(figure)


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
    percent_ticks(axes.yaxis)
    axes.grid(axis="x", visible=False)


@styled
def unsafe_by_risk(rows: list[PolicyRank], tables: dict[str, Table]) -> str | None:
    """One line per policy and one panel per risk location: the unsafe rate with its interval, on
    one scale; None where no prompt has a risk location.
    """
    cells = {
        risk: [tables[row.policy].get(risk, {}).get("unsafe") for row in rows]
        for risk in RISK_LOCATIONS
    }
    shown = {risk: column for risk, column in cells.items() if any(column)}
    if not shown:
        return None
    figure = new_figure(11.4, 0.95 + 0.2 * len(rows))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (risk, column) in zip(panels, shown.items(), strict=True):
        axes.set_title(f"risk {RISK_LOCATIONS[risk]}".replace("\n", " "))
        for y, (row, cell) in enumerate(zip(rows, column, strict=True)):
            _interval(axes, y, cell, kind_colour(row.kind), f"{risk}-{row.number}")
        axes.set_xlim(-0.02, 1.15)
        axes.set_xticks(np.linspace(0, 1, 5))
        percent_ticks(axes.xaxis)
        axes.tick_params(axis="y", pad=8)
    names = [f"{shortened(row.policy, 30)}  {row.number:>2}" for row in rows]
    panels[0].set_yticks(range(len(rows)), names, color=INK)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return uri(figure)


def _interval(axes: Axes, y: int, cell: Cell | None, colour: str, gid: str) -> None:
    if cell is None:
        axes.text(0.02, y, "no prompt", va="center", fontsize=7, color="#55616D")
        return
    axes.plot([cell["low"], cell["high"]], [y, y], color=colour, lw=2.6, alpha=0.4, gid=gid)
    axes.plot([cell["rate"]], [y], marker="o", ms=4.5, color=colour, ls="none")
    x = float(cell["high"]) + 0.025
    axes.text(x, y, f"{100 * cell['rate']:.1f}", va="center", fontsize=7)

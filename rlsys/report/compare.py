"""Pictures that set policies against each other."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rlsys.evaluation.stats import Cell, Table
from rlsys.report.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, styled, uri

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


def policy_colours(policies: list[str]) -> dict[str, str]:
    """Grey for the first policy, blue for the last, the rest of the palette between."""
    colours = {
        name: POLICY_COLOURS[(i - 1) % len(POLICY_COLOURS)] for i, name in enumerate(policies)
    }
    colours[policies[0]] = GREY
    if len(policies) > 1:
        colours[policies[-1]] = BLUE
    return colours


@styled
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
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(axis="x", visible=False)

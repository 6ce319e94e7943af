"""Draws a finished run of configs/tradeoff.yaml: safe against helpful.

python benchmarks/tradeoff.py runs/tradeoff [runs/tradeoff-1 ...] docs/tradeoff.png

Constants join in a line in the order of the recipe; several runs are drawn one over the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsys.report.drawing import BLUE, GREY, ORANGE

CONSTANT, BUDGET = "constant", "budget"


def point(table: dict[str, Any]) -> tuple[float, float, float, float]:
    """Helpful and safe in percent, each with half the width of its interval."""
    helpful, unsafe = table["all"]["helpful"], table["all"]["unsafe"]
    half = [50 * (cell["high"] - cell["low"]) for cell in (helpful, unsafe)]
    return 100 * helpful["rate"], 100 - 100 * unsafe["rate"], *half  # type: ignore[return-value]


def draw(axes: Axes, tables: dict[str, Any], *, named: bool) -> None:
    """One run: a line of constants, a marker for every policy with its two intervals."""
    points = {name: point(table) for name, table in tables.items()}
    line = [at for name, at in points.items() if name.startswith(CONSTANT)]
    axes.plot([x for x, *_ in line], [y for _, y, *_ in line], color=GREY, linewidth=1, zorder=1)
    for name, (x, y, dx, dy) in points.items():
        adaptive = name.startswith(BUDGET)
        colour = BLUE if adaptive else GREY if name.startswith(CONSTANT) else ORANGE
        axes.errorbar(x, y, dy, dx, fmt="o", color=colour, markersize=5, linewidth=0.8)
        if named:
            left = x > 50
            axes.annotate(
                name,
                (x, y),
                (-7 if left else 7, -3),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=8,
                color=colour,
            )


def main(runs: list[Path], picture: Path) -> None:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    whole, corner = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        tables = json.loads((run / "evaluation.json").read_text())
        draw(whole, tables, named=number == 0)
        near = {name: t for name, t in tables.items() if min(point(t)[:2]) > 80}
        draw(corner, near, named=number == 0)
    for axes in (whole, corner):
        axes.set_xlabel("right answers to harmless prompts, %")
        axes.set_ylabel("harmful prompts declined, %")
        axes.spines[["top", "right"]].set_visible(False)
    whole.set(xlim=(-4, 104), ylim=(-4, 104))
    corner.set_title("the upper right corner", fontsize=9)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    *folders, out = map(Path, sys.argv[1:])
    main(folders, out)

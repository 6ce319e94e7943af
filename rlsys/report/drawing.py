"""Shared by all pictures of the report: colours, style, conversion to a data URI.

matplotlib is imported only where something is drawn: stage kinds import this module.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from rlsys.report.data import Array
from rlsys.report.section import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable with the common kinds of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#A9B2BC"

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
    "text.parse_math": False,  # names come from recipes: a dollar sign in one is no formula
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
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    # As an image, not inline: the ids inside one SVG then cannot meet those of another.
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def running_mean(values: Array) -> Array:
    """Centred running mean, narrower at the ends; shape (n,) in and out."""
    half = min(len(values) // 40, 25)
    total = np.concatenate([[0.0], np.cumsum(values)])
    position = np.arange(len(values))
    start = np.maximum(position - half, 0)
    end = np.minimum(position + half + 1, len(values))
    return np.asarray((total[end] - total[start]) / (end - start), dtype=np.float64)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def panel(title: str, unit: str) -> tuple[Figure, Axes]:
    figure = new_figure(5.6, 2.75)
    axes = figure.subplots()
    axes.set_title(title)
    name_axes(axes, unit)
    return figure, axes


def name_axes(axes: Axes, unit: str, steps: str = "iteration", ticks: int = 7) -> None:
    axes.set_ylabel(unit)
    axes.set_xlabel(steps)
    integer_ticks(axes.xaxis, ticks)


def integer_ticks(axis: Axis, most: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True))


def percent_ticks(axis: Axis, decimals: int | None = None) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=decimals))


def line(
    axes: Axes,
    xy: tuple[Array, Array],
    colour: str,
    label: str | None = None,
    smooth: bool = True,
) -> None:
    """All values as a faint line, with the running mean on top."""
    steps, values = xy
    if not len(steps):
        return
    if smooth and len(steps) >= 40:
        axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.9)
        axes.plot(steps, running_mean(values), color=colour, label=label)
    else:
        marker = "o" if len(steps) <= 20 else None
        axes.plot(steps, values, color=colour, label=label, marker=marker, markersize=3.5)


def note_if_empty(axes: Axes) -> None:
    if not axes.has_data():
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=GREY)


def finish(figure: Figure, axes: Axes) -> str:
    note_if_empty(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5, borderaxespad=0.2)
    return uri(figure)

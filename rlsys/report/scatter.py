"""Scatter plot of many policies: safe against helpful, with the crowded corner enlarged."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlsys.report.compare import kind_colour, kind_legend
from rlsys.report.drawing import GREY, styled, uri
from rlsys.report.pareto import Point, PolicyRank, pareto_front
from rlsys.report.section import INK
from rlsys.report.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, LINE = 11.4, 0.19  # of the picture, and from name to name; inches
CROWD = 0.5  # the share of points that the second panel shows
SPREAD = 1 / 3  # it is drawn if these points span less than this share of the whole range
NUMBER_HEIGHT, DIGIT = 8.0, 5.0  # points of print
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class View:
    """Limits of a panel, shares in 0..1 and a little beyond."""

    left: float
    right: float
    bottom: float
    top: float

    def holds(self, row: PolicyRank) -> bool:
        x, y = coordinates(row)
        return self.left <= x <= self.right and self.bottom <= y <= self.top


def coordinates(row: PolicyRank) -> tuple[float, float]:
    """(helpful, safe) of a row that has both."""
    assert row.point is not None
    return float(row.point.helpful["rate"]), float(row.point.safe["rate"])


@styled
def safe_against_helpful(rows: list[PolicyRank]) -> str | None:
    """Every policy with both rates as a numbered point with its two 95 % intervals, the Pareto
    front as a step line, names beside it; None where no policy has both.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    ranked = [row for row in rows if row.point]
    if not ranked:
        return None
    height = max(4.7, LINE * (len(rows) + len({row.kind for row in rows})) + 1.5)
    figure = Figure(figsize=(WIDTH, height), layout="none")
    bottom, tall = 0.5 / height, 1 - 0.9 / height
    whole, crowd = overview(ranked), zoom(ranked)
    # Fixed axes, no constrained layout: numbers are placed by pixel coordinates.
    left = figure.add_axes((0.055, bottom, 0.335 if crowd else 0.7, tall))
    left.set_gid("whole")
    left.set_title("Safe against helpful, all held-out prompts")
    line, inside = pareto_front(rows), [row for row in ranked if crowd and crowd.holds(row)]
    _panel(left, whole, ranked, line, [row for row in ranked if row not in inside])
    if crowd:
        size = crowd.right - crowd.left, crowd.top - crowd.bottom
        corner = (crowd.left, crowd.bottom)
        left.add_patch(Rectangle(corner, *size, fill=False, ec=INK, ls=":", lw=0.9, zorder=4))
        right = figure.add_axes((0.445, bottom, 0.335, tall))
        right.set_gid("zoom")
        right.set_title("The dotted corner, larger")
        _panel(right, crowd, inside, line, inside)
    _names(figure.add_axes((0.8, bottom, 0.2, tall)), rows)
    return uri(figure)


def overview(rows: list[PolicyRank]) -> View:
    """All points with their intervals."""
    points = [row.point for row in rows if row.point]
    x = [float(point.helpful[end]) for point in points for end in ("low", "high")]
    y = [float(point.safe[end]) for point in points for end in ("low", "high")]
    return _around(x, y, 0.05)


def zoom(rows: list[PolicyRank]) -> View | None:
    """The points nearest to the upper right, None where they span much of the range."""
    points = np.array([coordinates(row) for row in rows], dtype=np.float64)
    extent = np.ptp(points, axis=0)
    if len(rows) < 3 or not extent.any():
        return None
    distance = ((points.max(axis=0) - points) / np.where(extent > 0, extent, 1)).max(axis=1)
    near = np.sort(distance)[math.ceil(CROWD * len(rows)) - 1]
    if near > SPREAD:
        return None
    crowd = points[distance <= near]
    return _around(crowd[:, 0].tolist(), crowd[:, 1].tolist(), 0.18)


def _around(x: list[float], y: list[float], margin: float) -> View:
    return View(*_limits(x, margin), *_limits(y, margin))


def _limits(values: list[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max(margin * (high - low), 0.01)
    # Room for a point at 0 or 1, but not for a tick of 101 %.
    over = 0.04 * (high - low + 2 * pad)
    return max(low - pad, -over), min(high + pad, 1 + over)


def _panel(
    axes: Axes, view: View, rows: list[PolicyRank], line: list[Point], numbered: list[PolicyRank]
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(view.left, view.right)
    axes.set_ylim(view.bottom, view.top)
    axes.set_xlabel("helpful: harmless prompts answered correctly")
    axes.set_ylabel("safe: harmful prompts without a complying answer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    # From the left edge to the bottom edge: what lies below and left of it is dominated.
    x = [-1.0, *(float(p.helpful["rate"]) for p in line), float(line[-1].helpful["rate"])]
    y = [float(line[0].safe["rate"]), *(float(p.safe["rate"]) for p in line), -1.0]
    name = f"{axes.get_gid()}-front"
    axes.plot(x, y, drawstyle="steps-pre", color="#55616D", lw=1.8, zorder=1.5, gid=name)
    for row in rows:
        _cross(axes, row)
    _number(axes, rows, numbered)


def _cross(axes: Axes, row: PolicyRank) -> None:
    assert row.point is not None
    helpful, safe = row.point.helpful, row.point.safe
    colour, panel = kind_colour(row.kind), axes.get_gid()
    x, y = coordinates(row)
    thin = {"color": colour, "lw": 0.9, "alpha": 0.55, "zorder": 2}
    axes.plot(
        [helpful["low"], helpful["high"]], [y, y], **thin, gid=f"{panel}-helpful-{row.number}"
    )
    axes.plot([x, x], [safe["low"], safe["high"]], **thin, gid=f"{panel}-safe-{row.number}")
    face = colour if row.on_pareto_front else "white"
    axes.plot(
        [x], [y], marker="o", ms=6, mfc=face, mec=colour, mew=1.4, ls="none", zorder=3,
        gid=f"{panel}-point-{row.number}", clip_on=False,  # whole, even on the frame
    )  # fmt: skip


def _number(axes: Axes, rows: list[PolicyRank], numbered: list[PolicyRank]) -> None:
    """Place each number beside its point, without covering points or other numbers."""
    print_points = 72 / axes.figure.dpi
    at = {row.number: axes.transData.transform(coordinates(row)) * print_points for row in rows}
    frame = axes.bbox.extents * print_points
    markers = [(x - 4, y - 4, x + 4, y + 4) for x, y in at.values()]
    taken: list[Box] = []
    for row in numbered:
        x, y = at[row.number]
        half = DIGIT * len(str(row.number)) / 2 + 1
        best, box = free_offset((x, y), half, [*markers, *taken], tuple(frame))
        taken.append(box)
        far = math.hypot(*best) > 13
        axes.annotate(
            str(row.number), coordinates(row), xytext=best, textcoords="offset points", ha="center",
            va="center", fontsize=8, color=kind_colour(row.kind), weight="bold", zorder=5,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": GREY} if far else None,
        )  # fmt: skip


def free_offset(
    at: tuple[float, float], half: float, taken: list[Box], frame: Box
) -> tuple[tuple[float, float], Box]:
    """The nearest free position around a point for a number `2 * half` wide, the least covered if
    none is free. Returns: (offset, box).
    """
    choices: list[tuple[float, int, tuple[float, float], Box]] = []
    for radius, eighth in itertools.product((12, 17, 23, 30, 38), (1, 3, 7, 5, 0, 2, 6, 4)):
        angle = eighth * math.pi / 4
        dx, dy = radius * math.cos(angle), radius * math.sin(angle)
        x, y = at[0] + dx, at[1] + dy
        box = (x - half, y - NUMBER_HEIGHT / 2, x + half, y + NUMBER_HEIGHT / 2)
        covered = sum(_shared(box, other) for other in taken)
        outside = (box[2] - box[0]) * (box[3] - box[1]) - _shared(box, frame)
        choices.append((covered + outside, len(choices), (dx, dy), box))
    _, _, offset, box = min(choices)
    return offset, box


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _names(axes: Axes, rows: list[PolicyRank]) -> None:
    """Number and name of every policy, grey if it is not ranked; below, the colours of kinds."""
    axes.axis("off")
    kinds = kind_legend([row.kind for row in rows])
    lines = axes.bbox.height / axes.figure.dpi / LINE
    axes.set_xlim(0, 1)
    axes.set_ylim(lines - 0.5, -0.5)
    for y, row in enumerate(rows):
        colour = kind_colour(row.kind) if row.point else GREY
        axes.text(0.08, y, str(row.number), ha="right", va="center", color=colour, weight="bold")
        weight = "bold" if row.on_pareto_front else "normal"
        name = shortened(row.policy, 27) + ("" if row.point else " (not ranked)")
        axes.text(0.12, y, name, va="center", color=INK if row.point else GREY, weight=weight)
    axes.text(0.0, len(rows) + 0.6, "made by a stage of kind", va="center", color="#55616D")
    for y, (label, colour) in enumerate(kinds.items(), start=len(rows) + 2):
        axes.plot([0.05], [y - 0.3], marker="o", ms=6, color=colour, ls="none")
        axes.text(0.12, y - 0.3, label, va="center")

"""The section on a benchmark: its table, and its rates by category."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlsys.errors import DataError
from rlsys.report.data import RunData, Series
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
from rlsys.report.section import INK, Picture, Section
from rlsys.report.text import shortened

TABLE, ANSWERS = "table.json", "answers.jsonl"
"""Files of a benchmark stage, in the run directory below ``benchmark/<stage>``."""
_COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
_WIDE = 3  # panels in a row of the page

Table = dict[str, Any]


def benchmark_section(run: RunData, series: Series) -> Section:
    """Raises: DataError for a table.json that is not one of a benchmark."""
    path = run.folder / "benchmark" / series.stage / TABLE
    if not path.is_file():
        return Section(series.stage, [], missing=f"{path.name} of {series.stage} is not here.")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return _section(series.stage, table)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the table of a benchmark: {error!r}") from error


def _section(stage: str, table: Table) -> Section:
    metrics = [
        name
        for name in table["metrics"]
        if any(name in row for splits in table["policies"].values() for row in splits.values())
    ]
    left_out = ", ".join(f"{n} × {reason}" for reason, n in table["left_out"].items())
    about = [
        f"{table['title']}, {table['source']}: {table['items']} items, graded by "
        f"{table['graded_by']}." + (f" Left out: {left_out}." if left_out else ""),
        "Rate [95 % Wilson interval] over the items graded; where the judge gave no reply that "
        "could be parsed, the item has no grade and is counted as abstained. Of a win rate, ties "
        "count as half a win: both orders of the answers were judged, and disagreement is a tie. "
        f"All answers and grades are in benchmark/{stage}/{ANSWERS}.",
    ]
    return Section(
        stage,
        [_picture(stage, table, metrics)],
        about,
        table=_cells(table, metrics),
    )


def _cells(table: Table, metrics: list[str]) -> list[list[str]]:
    from rlsys.evaluation.benchmark_table import cell_text

    labels = [
        f"{table['metrics'][name]['label']} ({_better(table['metrics'][name])})" for name in metrics
    ]
    rows = [["split", "policy", *labels]]
    for split in _splits(table):
        for policy, splits in table["policies"].items():
            row = splits.get(split, {})
            rows.append([split, policy, *(cell_text(row.get(name)) for name in metrics)])
    return rows


def _better(metric: Mapping[str, Any]) -> str:
    return "lower is better" if metric["lower"] else "higher is better"


def _splits(table: Table) -> list[str]:
    return list(dict.fromkeys(s for splits in table["policies"].values() for s in splits))


def _picture(stage: str, table: Table, metrics: list[str]) -> Picture:
    caption = "Rates by category with 95 % Wilson intervals; no point where nothing was graded."
    return Picture(by_category(table, metrics), stage, caption, wide=len(metrics) >= _WIDE)


@styled
def by_category(table: Table, metrics: list[str]) -> str:
    """One panel per metric, one line per split, one colour per policy."""
    splits, policies = _splits(table), list(table["policies"])
    height = 0.9 + len(splits) * (0.16 + 0.09 * len(policies))
    figure = new_figure(11.4 if len(metrics) >= _WIDE else 5.6, height)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    offsets = np.linspace(-0.28, 0.28, len(policies)) if len(policies) > 1 else [0.0]
    for axes, metric in zip(panels, metrics, strict=True):
        axes.set_title(shortened(table["metrics"][metric]["label"], 30))
        for policy, offset, number in zip(policies, offsets, range(len(policies)), strict=True):
            colour = _COLOURS[number % len(_COLOURS)]
            axes.plot([], [], marker="o", ls="none", color=colour, label=policy)
            for y, split in enumerate(splits):
                cell = table["policies"][policy].get(split, {}).get(metric)
                if cell is not None and cell["rate"] is not None:
                    place = y + offset
                    axes.plot([cell["low"], cell["high"]], [place, place], color=colour, lw=2,
                              alpha=0.45, gid=f"{metric}-{number}-{y}")  # fmt: skip
                    axes.plot([cell["rate"]], [place], marker="o", ms=3.5, color=colour)
        axes.set_xlim(-0.02, 1.02)
        percent_ticks(axes.xaxis)
    panels[0].set_yticks(range(len(splits)), [shortened(s, 34) for s in splits], color=INK)
    panels[0].set_ylim(len(splits) - 0.4, -0.6)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return uri(figure)

"""The table of a benchmark: rates by split with 95 % Wilson intervals, abstentions beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from rlsys.evaluation.benchmarks.benchmark import Benchmark, Grade, Item
from rlsys.evaluation.grading import Graded
from rlsys.evaluation.stats import cell, wilson_mean
from rlsys.judging.comparisons import Verdict
from rlsys.judging.parse import ParseFailure

ALL = "all"
Row = dict[str, Any]
"""Metric -> {rate, low, high, n, abstained}, the first three None where nothing was graded; of win
rates also wins, ties and losses.
"""
_POINTS = {Verdict.WIN: 1.0, Verdict.TIE: 0.5, Verdict.LOSS: 0.0}
_PLURALS = {Verdict.WIN: "wins", Verdict.TIE: "ties", Verdict.LOSS: "losses"}


def tabulate_grades(benchmark: Benchmark, items: Sequence[Item], graded: Graded) -> dict[str, Row]:
    """Split -> row: ``all``, then subsets where there are several, then categories."""
    splits: dict[str, list[int]] = {ALL: list(range(len(items)))}
    for names in ([item.subset for item in items], [item.category for item in items]):
        found = list(dict.fromkeys(names))
        for name in found if len(found) > 1 else []:
            splits[name] = [number for number, each in enumerate(names) if each == name]
    return {split: _row(benchmark, graded, rows) for split, rows in splits.items()}


def _row(benchmark: Benchmark, graded: Graded, rows: Sequence[int]) -> Row:
    row: Row = {}
    for metric in benchmark.headings:
        grades = [graded.grades[n][metric.name] for n in rows if metric.name in graded.grades[n]]
        verdicts = [
            graded.verdicts[n][metric.name] for n in rows if metric.name in graded.verdicts[n]
        ]
        if grades:
            row[metric.name] = share(grades)
        elif verdicts:
            row[metric.name] = win_rate(verdicts)
    return row


def share(grades: Sequence[Grade]) -> dict[str, Any]:
    """The rate over the graded items; the others abstain."""
    hits = [grade for grade in grades if not isinstance(grade, ParseFailure)]
    return _cell(cell(hits), len(grades) - len(hits))


def win_rate(verdicts: Sequence[Verdict | ParseFailure]) -> dict[str, Any]:
    """Wins, with ties as halves, over the compared items."""
    said = [verdict for verdict in verdicts if isinstance(verdict, Verdict)]
    points = sum(_POINTS[verdict] for verdict in said)
    rate = asdict(wilson_mean(points / len(said), len(said))) if said else None
    counts = {name: said.count(verdict) for verdict, name in _PLURALS.items()}
    return _cell(rate, len(verdicts) - len(said)) | counts


def _cell(rate: dict[str, Any] | None, abstained: int) -> dict[str, Any]:
    empty = {"rate": None, "n": 0, "low": None, "high": None}
    return {**(rate or empty), "abstained": abstained}


def cell_text(found: dict[str, Any] | None) -> str:
    """A cell for people: ``45.0 % [37.1, 53.2] of 160, 7 abstained``."""
    if found is None:
        return "–"
    abstained = f"{found['abstained']} abstained" if found["abstained"] else ""
    if found["rate"] is None:
        return abstained
    low, high = 100 * found["low"], 100 * found["high"]
    text = f"{100 * found['rate']:.1f} % [{low:.1f}, {high:.1f}] of {found['n']}"
    return f"{text}, {abstained}" if abstained else text


def rates_table(benchmark: Benchmark, tables: Mapping[str, Mapping[str, Row]]) -> RichTable:
    """For a terminal: the rates over all items; no question and no answer."""
    shown = RichTable("metric", "policy", "rate [95 % interval]", box=None, title=benchmark.title)
    for metric in benchmark.headings:
        for policy, splits in tables.items():
            if found := splits[ALL].get(metric.name):
                shown.add_row(*map(escape, (metric.label, policy, cell_text(found))))
    return shown


def warnings(benchmark: Benchmark, tables: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """A line for every rate that the judge abstained on more often than not."""
    return [
        f"{metric.label} of {policy}: the judge abstained on {found['abstained']} of "
        f"{found['abstained'] + found['n']}"
        for metric in benchmark.headings
        for policy, splits in tables.items()
        if (found := splits[ALL].get(metric.name)) and found["abstained"] > found["n"]
    ]

"""Builds the HTML report of a run folder."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlsys.evaluation.stats import METRICS, SPLITS, Table
from rlsys.report import compare
from rlsys.report.budget import budget_lines
from rlsys.report.data import RunData, Series
from rlsys.report.gallery import CARDS_PER_GROUP, gallery
from rlsys.report.load import load_run
from rlsys.report.pareto import MAX_BARS, PolicyRank, rank_policies
from rlsys.report.scatter import safe_against_helpful
from rlsys.report.sections import parts
from rlsys.report.summary import changes, pair, paragraph
from rlsys.report.text import duration, number, percent


def build_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path; missing files of the run are named in it.

    Raises ConfigError without a readable config.yaml and DataError, naming file and row, for a
    file that cannot be used.
    """
    run = load_run(run_dir)
    environment = Environment(
        loader=PackageLoader("rlsys.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration}
    page = environment.get_template("template.html.j2").render(_context(run))
    report = run_dir / "report.html"
    partial = report.with_name(report.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, report)
    return report


def _context(run: RunData) -> dict[str, Any]:
    policies = list(run.evaluation or {})
    splits, metrics = _axes(run.evaluation or {})
    rows = rank_policies(run.evaluation or {}, run.recipe)
    return {
        "run": run,
        "budget": budget_lines(run),
        "summary": paragraph(run),
        "period": _period(run.series or []),
        "changes": changes(run.evaluation) if run.evaluation else [],
        "pair": pair(policies) if policies else (None, ""),
        **_comparison(run, rows),
        "groups": gallery(run.samples or [], run.folder, policies),
        "cards_per_group": CARDS_PER_GROUP,
        "parts": parts(run),
        "policies": policies,
        "splits": splits,
        "metrics": metrics,
        "total_seconds": sum(s.seconds for s in run.stages or [] if not s.reused),
    }


def _comparison(run: RunData, rows: list[PolicyRank]) -> dict[str, Any]:
    """Grouped bars for a few policies; scatter plot, intervals and table for many."""
    tables = run.evaluation or {}
    many = len(rows) > MAX_BARS
    if many:
        colours = {row.policy: compare.kind_colour(row.kind) for row in rows}
    else:
        colours = compare.policy_colours(list(tables)) if tables else {}
    return {
        "many": many,
        "ranks": rows,
        "headline": compare.headline(tables) if tables and not many else None,
        "scatter": safe_against_helpful(rows) if many else None,
        "unsafe_by_risk": compare.unsafe_by_risk(rows, tables) if many else None,
        "colours": colours,
    }


def _axes(tables: dict[str, Table]) -> tuple[list[str], dict[str, str]]:
    splits = dict.fromkeys(s for table in tables.values() for s in table)
    names = dict.fromkeys(m for table in tables.values() for row in table.values() for m in row)
    order, metrics = [*SPLITS, *splits], [*METRICS, *names]
    labels = {m: m.replace("_", " ") for m in sorted(names, key=metrics.index)}
    return sorted(splits, key=order.index), labels | {"over_refusal": "over-refusal"}


def _period(series: list[Series]) -> str:
    times = [float(t) for s in series for t in s.column("time")[1]]
    if not times:
        return ""
    first, last = (datetime.fromtimestamp(t, UTC) for t in (min(times), max(times)))
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"

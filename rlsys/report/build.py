"""Turns the folder of a run into one HTML file."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlsys.evaluation.stats import METRICS, SPLITS, Table
from rlsys.report import compare, plots
from rlsys.report.data import RunData, Series, load_run
from rlsys.report.drawing import Picture
from rlsys.report.feedback import feedback_section
from rlsys.report.front import FEW, Standing, standings
from rlsys.report.gallery import CARDS_PER_GROUP, gallery
from rlsys.report.judge import judge_section
from rlsys.report.scatter import safe_against_helpful
from rlsys.report.summary import (
    changes,
    pair,
    paragraph,
    percent,
    steady_state,
    trained_sentence,
)

# Kinds of stages with a section of their own, whose rows are no curves of a loss.
OWN_SECTION = ("safe_rlhf", "guarded", "judge", "rlaif")


def build_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path; whatever the run lacks is named in it.

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
    environment.filters |= {"percent": percent, "number": _number, "duration": _duration}
    page = environment.get_template("template.html.j2").render(_context(run))
    report = run_dir / "report.html"
    partial = report.with_name(report.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, report)
    return report


def _context(run: RunData) -> dict[str, Any]:
    policies = list(run.evaluation or {})
    splits, metrics = _axes(run.evaluation or {})
    rows = standings(run.evaluation or {}, run.recipe)
    series = run.series or []
    training = [
        (s, trained_sentence(s), _training(run, s)) for s in series if s.kind == "safe_rlhf"
    ]
    return {
        "run": run,
        "summary": paragraph(run),
        "period": _period(series),
        "changes": changes(run.evaluation) if run.evaluation else [],
        "pair": pair(policies) if policies else (None, ""),
        **_comparison(run, rows),
        "groups": gallery(run.samples or [], run.folder, policies),
        "cards_per_group": CARDS_PER_GROUP,
        "judges": [judge_section(s) for s in series if s.kind == "judge"],
        "feedback": [feedback_section(run, s) for s in series if s.kind == "rlaif"],
        "training": training,
        "guarded": _guarded(run),
        "learning": _learning(run),
        "policies": policies,
        "splits": splits,
        "metrics": metrics,
        "total_seconds": sum(s.seconds for s in run.stages or [] if not s.reused),
    }


def _comparison(run: RunData, rows: list[Standing]) -> dict[str, Any]:
    """Grouped bars for a few policies; for more a point, a line and a row of a table each."""
    tables = run.evaluation or {}
    many = len(rows) > FEW
    if many:
        colours = {row.policy: compare.kind_colour(row.kind) for row in rows}
    else:
        colours = compare.policy_colours(list(tables)) if tables else {}
    return {
        "many": many,
        "standings": rows,
        "headline": compare.headline(tables) if tables and not many else None,
        "scatter": safe_against_helpful(rows) if many else None,
        "places": compare.places(rows, tables) if many else None,
        "colours": colours,
    }


def _axes(tables: dict[str, Table]) -> tuple[list[str], dict[str, str]]:
    splits = dict.fromkeys([*SPLITS, *(s for table in tables.values() for s in table)])
    found = [m for table in tables.values() for row in table.values() for m in row]
    labels = {m: m.replace("_", " ") for m in dict.fromkeys([*METRICS, *found])}
    return list(splits), labels | {"over_refusal": "over-refusal"}


def _training(run: RunData, series: Series) -> list[Picture]:
    return [
        Picture(
            plots.curve(series, "reward", "Reward", "mean reward"),
            "Reward",
            "Mean score of the reward model. It should rise, or hold while cost comes down; a "
            "rise with falling helpfulness in the evaluation points at reward hacking.",
        ),
        Picture(
            plots.cost(series),
            "Cost",
            "Mean score of the cost model. The window mean, which drives the multiplier, should "
            "settle at or under the dashed threshold and stay out of the shaded side.",
        ),
        Picture(
            plots.curve(series, "lambda", "Multiplier λ", "λ", smooth=False),
            "Multiplier",
            "Weight of cost against reward. It grows while cost is above the threshold and "
            "levels off or shrinks once the constraint holds.",
        ),
        Picture(
            plots.curve(series, "kl", "KL to the reference policy", "nats"),
            "KL",
            "Distance from the reference policy. Slow growth is expected; a jump means the "
            "policy is leaving the region where the scorers can be trusted.",
        ),
        Picture(
            plots.gap(series),
            "Engine–trainer gap",
            "Difference of log-probabilities for the same tokens in the first batch after each "
            "sync. Flat and well under the dashed limit means the engine holds the new weights.",
        ),
        Picture(
            plots.curve(series, "length", "Answer length", "tokens"),
            "Length",
            "Mean length of an answer. A collapse suggests blanket refusals, steady growth "
            "suggests padding for reward.",
        ),
        Picture(
            plots.critics(series),
            "Critics",
            "Both should fall early and stay low; a critic that does not learn makes the "
            "advantages noise.",
        ),
        Picture(
            plots.updates(series),
            "Policy updates",
            "The share of tokens clipped shows how hard each update pushes; spikes of the "
            "gradient norm mark unstable batches.",
        ),
        Picture(
            plots.time_split(series, steady_state(run, series)),
            "Time",
            "Left: seconds of each iteration by phase; the thickest band is what to speed up. "
            "Right: samples per second, dotted where it settles.",
        ),
    ]


def _guarded(run: RunData) -> list[Picture]:
    return [
        Picture(
            plots.rounds(series),
            series.stage,
            "Answers the guard flags are drawn again; what passed is left alone. Round 0 is the "
            "policy without the guard. The unsafe share should fall and never rise; a rise of "
            "over-refusal is the guard's false alarms at work.",
        )
        for series in run.series or []
        if series.kind == "guarded"
    ]


def _learning(run: RunData) -> list[Picture]:
    stages = {stage.name: stage for stage in run.stages or []}
    return [
        Picture(plots.learning(s, stages.get(s.stage)), s.stage, s.kind)
        for s in run.series or []
        if s.kind not in OWN_SECTION and len(s.column("loss")[0])
    ]


def _period(series: list[Series]) -> str:
    times = [float(t) for s in series for t in s.column("time")[1]]
    if not times:
        return ""
    first, last = (datetime.fromtimestamp(t, UTC) for t in (min(times), max(times)))
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"

"""What the numbers of a run say, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlsys.evaluation.stats import Cell, Table
from rlsys.report.data import RunData, Series
from rlsys.report.front import FEW, front_sentences, standings

# metric -> (label, what it is a share of, whether lower is better)
HEADLINES = {
    "unsafe": ("Unsafe", "of harmful prompts get an answer that complies", True),
    "over_refusal": ("Over-refusal", "of harmless prompts are declined", True),
    "helpful": ("Helpful", "of harmless prompts are answered correctly", False),
    "safe_and_helpful": (
        "Safe and helpful",
        "of all prompts: harm declined and the risk named, harmless answered correctly",
        False,
    ),
}


@dataclass(frozen=True)
class Change:
    """One rate of two policies; `tone` is better, worse, unclear or single."""

    label: str
    meaning: str
    before: Cell | None
    after: Cell
    tone: str


def percent(share: float, digits: int = 1) -> str:
    """A share in 0..1 as a percentage; a narrow no-break space keeps number and sign together."""
    return f"{100 * share:.{digits}f}\u202f%"


def pair(policies: list[str]) -> tuple[str | None, str]:
    """(policy to compare with, policy of interest): the one named start, else the first, and the
    one named final, else the last.
    """
    before = "start" if "start" in policies else policies[0]
    after = "final" if "final" in policies else policies[-1]
    return (before if before != after else None), after


def changes(tables: dict[str, Table]) -> list[Change]:
    """The headline rates over all prompts, those without a prompt left out."""
    before_name, after_name = pair(list(tables))
    found = []
    for metric, (label, meaning, lower) in HEADLINES.items():
        after = tables[after_name].get("all", {}).get(metric)
        before = tables[before_name].get("all", {}).get(metric) if before_name else None
        if after is not None:
            found.append(Change(label, meaning, before, after, _tone(before, after, lower)))
    return found


def _tone(before: Cell | None, after: Cell, lower_is_better: bool) -> str:
    if before is None:
        return "single"
    if before["low"] <= after["high"] and after["low"] <= before["high"]:
        return "unclear"
    return "better" if (after["rate"] < before["rate"]) == lower_is_better else "worse"


def paragraph(run: RunData) -> str:
    """The report's opening paragraph."""
    sentences = [_evaluated(run)]
    if len(run.evaluation or {}) > FEW:
        sentences += front_sentences(standings(run.evaluation or {}, run.recipe))
    trained = [trained_sentence(s) for s in run.series or [] if s.kind == "safe_rlhf"]
    sentences += trained if len(trained) <= 2 else []  # each one's section begins with its own
    return " ".join(sentences)


def _evaluated(run: RunData) -> str:
    if not run.evaluation:
        return "No evaluation stage ran, so this report shows training only."
    before, after = pair(list(run.evaluation))
    found = changes(run.evaluation)
    if not found:
        return f"The evaluation of {after} holds no prompt that counts."
    who = f"From {before} to {after}" if before else f"For {after}"
    if len(run.evaluation) > FEW:
        who = f"{len(run.evaluation)} policies were evaluated. {who}"
    parts = []
    for change in found:
        n = change.after["n"]
        if change.before is None:
            rate = percent(change.after["rate"])
        else:
            rate = f"{percent(change.before['rate'])} → {percent(change.after['rate'])}"
        unclear = "; 95 % intervals overlap" if change.tone == "unclear" else ""
        parts.append(f"{change.label.lower()} {rate} (n\u00a0=\u00a0{n}{unclear})")
    text = f"{who}, on held-out prompts: {', '.join(parts)}."
    if judge := run.evaluation_meta.get("judged_by"):
        text += f" Judged by {judge}."
    return text


def trained_sentence(series: Series) -> str:
    """How a safe_rlhf stage ended: cost, threshold and multiplier."""
    steps, _ = series.column("step")
    plural = "" if len(steps) == 1 else "s"
    text = f"The safe_rlhf stage “{series.stage}” ran {len(steps)} iteration{plural}"
    key = "cost_window" if len(series.column("cost_window")[0]) else "cost"
    costs, thresholds = series.column(key)[1], series.column("threshold")[1]
    if len(costs) and len(thresholds):
        side = "at or under" if costs[-1] <= thresholds[-1] else "above"
        text += f" and ended with a mean cost of {costs[-1]:.3g}, {side} its threshold"
        text += f" of {thresholds[-1]:.3g}"
    multiplier = series.column("lambda")[1]
    if len(multiplier):
        text += f", with λ = {multiplier[-1]:.3g}"
    return text + "."


def steady_state(run: RunData, series: Series) -> float | None:
    """Samples per second of a stage: its recorded value, else the median of the later half."""
    for stage in run.stages or []:
        if stage.name == series.stage and "samples_per_s" in stage.metrics:
            return stage.metrics["samples_per_s"]
    values = series.column("samples_per_s")[1]
    return float(np.median(values[len(values) // 2 :])) if len(values) else None

"""The results of a run in sentences."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.evaluation.stats import Cell, Table
from rlsys.report.data import RunData
from rlsys.report.pareto import MAX_BARS, pareto_sentences, rank_policies
from rlsys.report.sections import SECTIONS, kind_report
from rlsys.report.text import percent

# metric -> (label, meaning, whether lower is better)
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
    result = []
    for metric, (label, meaning, lower) in HEADLINES.items():
        after = tables[after_name].get("all", {}).get(metric)
        before = tables[before_name].get("all", {}).get(metric) if before_name else None
        if after is not None:
            result.append(Change(label, meaning, before, after, _tone(before, after, lower)))
    return result


def _tone(before: Cell | None, after: Cell, lower_is_better: bool) -> str:
    if before is None:
        return "single"
    if before["low"] <= after["high"] and after["low"] <= before["high"]:
        return "unclear"
    return "better" if (after["rate"] < before["rate"]) == lower_is_better else "worse"


def paragraph(run: RunData) -> str:
    """The report's opening paragraph."""
    sentences = [_evaluated(run)]
    if len(run.evaluation or {}) > MAX_BARS:
        rows = rank_policies(run.evaluation or {}, run.recipe)
        for kind, report in SECTIONS.items():
            sentences += pareto_sentences(rows, kind) if report.aligns else []
    ended = []
    for series in run.series or []:
        if sentence := kind_report(series.kind).ended:
            ended.append(sentence(series))
    sentences += ended if len(ended) <= 2 else []  # each one's section begins with its own
    return " ".join(sentences)


def _evaluated(run: RunData) -> str:
    if not run.evaluation:
        return "No evaluation stage ran, so this report shows training only."
    before, after = pair(list(run.evaluation))
    rates = changes(run.evaluation)
    if not rates:
        return f"The evaluation of {after} holds no prompt that counts."
    scope = f"From {before} to {after}" if before else f"For {after}"
    if len(run.evaluation) > MAX_BARS:
        scope = f"{len(run.evaluation)} policies were evaluated. {scope}"
    parts = []
    for change in rates:
        n = change.after["n"]
        if change.before is None:
            rate = percent(change.after["rate"])
        else:
            rate = f"{percent(change.before['rate'])} → {percent(change.after['rate'])}"
        unclear = "; 95 % intervals overlap" if change.tone == "unclear" else ""
        parts.append(f"{change.label.lower()} {rate} (n\u00a0=\u00a0{n}{unclear})")
    text = f"{scope}, on held-out prompts: {', '.join(parts)}."
    if judge := run.evaluation_meta.get("judged_by"):
        text += f" Judged by {judge}."
    return text

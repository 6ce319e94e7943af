"""Whether each aligned policy kept to its budget of unsafe answers, in one line."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.evaluation.budget import end_metrics
from rlsys.evaluation.stats import Rate, Table, wilson
from rlsys.report.data import RunData, Series
from rlsys.report.sections import SECTIONS
from rlsys.report.text import percent

WHEN = "over the last third of its iterations"


@dataclass(frozen=True)
class BudgetLine:
    """One stage with a constraint; figures: what was measured, in words."""

    stage: str
    met: bool
    figures: str

    @property
    def text(self) -> str:
        return f"{self.stage}: {self.verdict}. {self.figures}"

    @property
    def verdict(self) -> str:
        return "MET" if self.met else "NOT MET"


def budget_lines(run: RunData) -> list[BudgetLine]:
    """One line for every stage of the run that has a constraint.

    The budget is met by the share of unsafe answers among the held-out ones where the stage's
    policy is evaluated, else by the calibrated probability at the end of its training; a threshold
    without a budget by the mean cost. A figure that is over its bound says so either way.
    """
    found = []
    for series in run.series or []:
        if (report := SECTIONS.get(series.kind)) is None or not report.aligns:
            continue
        end = end_metrics(series.rows)
        if "violation_end" in end:
            found.append(_line(run, series, end))
    return found


def unsafe_share(table: Table) -> Rate | None:
    """Unsafe answers among all, harmless prompts included; None where no prompt counts."""
    row = table.get("all", {})
    unsafe, harmless = row.get("unsafe"), row.get("over_refusal")
    prompts = sum(int(cell["n"]) for cell in (unsafe, harmless) if cell)
    hits = round(unsafe["rate"] * unsafe["n"]) if unsafe else 0
    return wilson(hits, prompts) if prompts else None


def _line(run: RunData, series: Series, end: dict[str, float]) -> BudgetLine:
    budget = end.get("budget")
    met, figures = end["violation_end"] <= 0, []
    if budget is not None:
        figures.append(f"Budget: {percent(budget)} unsafe answers")
        share, met = end["unsafe_probability_end"], end["unsafe_probability_end"] <= budget
        interval = (share, end["unsafe_probability_low"], end["unsafe_probability_high"])
        figures.append(f"{_rate(*interval, budget)} under the cost model {WHEN}")
        for policy, rate in _evaluated(run, series.stage):
            met = rate.rate <= budget
            by = run.evaluation_meta.get("judged_by", "the evaluation")
            shown = _rate(rate.rate, rate.low, rate.high, budget)
            figures.append(f"{shown} of {policy}’s {rate.n} held-out answers by {by}")
    threshold = series.last("threshold")
    if threshold is not None and "cost_window" in series.rows[-1]:
        over = end["violation_end"] > 0
        side = "OVER" if over else "at or under"
        cost = threshold + end["violation_end"]
        figures.append(f"mean cost {cost:.3g}, {side} its threshold of {threshold:.3g}")
    text = "; ".join(figures) + "."
    return BudgetLine(series.stage, met, text[0].upper() + text[1:])


def _evaluated(run: RunData, stage: str) -> list[tuple[str, Rate]]:
    """Share of unsafe answers of the policy that a stage made; of several names the last."""
    names = [policy for policy, source in run.recipe.sources.items() if source == stage]
    rates = [(name, unsafe_share((run.evaluation or {}).get(name, {}))) for name in names]
    return [(name, rate) for name, rate in rates if rate is not None][-1:]


def _rate(share: float, low: float, high: float, budget: float) -> str:
    over = " (OVER)" if share > budget else ""
    return f"{percent(share)}{over} [{100 * low:.1f}, {100 * high:.1f}]"

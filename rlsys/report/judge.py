"""The section on a judge: agreement with the oracle, and robustness to injected text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlsys.data.worlds import WORLDS
from rlsys.errors import DataError
from rlsys.evaluation.stats import Rate, wilson
from rlsys.report.data import RunData, Series
from rlsys.report.drawing import BLUE, RED, new_figure, percent_ticks, styled, uri
from rlsys.report.section import INK, Highlight, Picture, Section
from rlsys.report.text import counted, percent, shortened

AGREEMENTS = {
    "image": "risks observed in the image alone",
    "text": "risks observed in the text alone",
    "joint": "risks observed in both together",
    "disentangled": "observed separately, then verified",
    "disentangled_joint": "observed together, then verified",
    "verify": "verification of one risk (≈)",
    "score": "score of an answer within 1 of 10",
    "score_observation": "risk recognised by an answer (≈)",
}
BALANCED = ("verify", "score_observation")  # mean of two shares: a binomial only nearly
GOAL = 0.9


@dataclass(frozen=True)
class Agreement:
    """A share of `n` items on which the judge is right; no interval where `n` is not recorded.
    unparsed: items left out because the reply could not be parsed.
    """

    label: str
    rate: float
    interval: Rate | None
    unparsed: int = 0


@dataclass(frozen=True)
class Injection:
    """Prompt injection in unsafe answers; each None if not recorded."""

    shift: float | None
    raised: float | None
    interval: Rate | None
    n: int | None


def judge_section(run: RunData, series: Series) -> Section:
    """Raises DataError for a share outside 0..1 or a number of items below zero."""
    measured = agreements(series)
    failures = counted(series, "parse_failures/") or "None is recorded."
    return Section(
        series.stage,
        [_agreement_picture(series, measured, shared_oracle(run, series))] if measured else [],
        highlights=[
            _injection_highlight(injection(series)),
            Highlight("Replies of the judge that could not be parsed", [failures]),
        ],
        missing=f"The stage {series.stage} recorded no agreement in metrics.jsonl.",
    )


def shared_oracle(run: RunData, series: Series) -> str:
    """What the judge's training shares with its measurement; "" where its model was not fine-tuned
    on the oracle's replies in this recipe.
    """
    model = run.recipe.stages.get(series.stage, {}).get("model")
    split = run.recipe.stages.get(str(model), {}).get("split")
    replies = {world.judge_split for world in WORLDS.values()} & set(str(split).split("+"))
    if not replies:
        return ""
    rows = run.recipe.sizes.get(replies.pop())
    count = "" if rows is None else f"{rows:,} "
    return (
        f" The judge's model was fine-tuned on {count}replies of the same oracle, about other "
        "pictures; no held-out pair of picture and question is among them. The agreement "
        "measures how well the oracle's replies were learned, not whether the oracle is right."
    )


def _agreement_picture(series: Series, measured: list[Agreement], shared: str) -> Picture:
    absent = [
        label for name, label in AGREEMENTS.items() if series.last(f"agreement/{name}") is None
    ]
    caption = "Per cent of held-out items on which the judge agrees with the oracle's labels, with "
    caption += f"95 % Wilson intervals; dashed: 90 %.{shared}"
    if any(each.unparsed for each in measured):
        caption += " + is the number of items left out, as their replies could not be parsed."
    if any("≈" in each.label for each in measured):
        caption += " ≈ is a balanced accuracy, for which the interval is approximate."
    if bare := [each.label for each in measured if each.interval is None]:
        caption += f" Without an interval, as the number of items is missing: {', '.join(bare)}."
    if absent:
        caption += f" Not measured: {', '.join(absent)}."
    return Picture(bars(series.stage, measured), series.stage, caption)


def _injection_highlight(measured: Injection | None) -> Highlight:
    title, value = "Prompt injection in answers", ""
    if measured is None:
        absent = "Not measured: the stage recorded no injection/shift and no injection/raised."
        return Highlight(title, [absent])
    shift = "The mean change of the score is not recorded."
    if measured.shift is not None:
        value = f"{measured.shift:+.2f} of 10"
        items = "" if measured.n is None else f" (n\u00a0=\u00a0{measured.n})"
        shift = "mean change of the score of unsafe answers when such text is appended"
        shift += f"{items}; near zero is best."
    raised = "How many rise by 2 points or more is not recorded."
    if measured.raised is not None:
        between = ""
        if measured.interval:
            between = f" [{100 * measured.interval.low:.1f}, {100 * measured.interval.high:.1f}]"
        raised = f"{percent(measured.raised)} of them{between} rise by 2 points or more."
    return Highlight(title, [shift, raised], value)


def agreements(series: Series) -> list[Agreement]:
    """The recorded agreements, AGREEMENTS first, with intervals where items are counted."""
    prefix = "agreement/"
    names = [name for name in series.names(prefix) if not name.endswith("_n")]
    measured = []
    for name in sorted(names, key=lambda name: [*AGREEMENTS, name].index(name)):
        rate = series.last(prefix + name)
        if rate is not None:
            interval = share(series, prefix + name, f"{prefix}{name}_n")
            unparsed = round(series.last(f"unparsed/{name}") or 0)
            measured.append(Agreement(AGREEMENTS.get(name, name), rate, interval, unparsed))
    return measured


def share(series: Series, key: str, count: str) -> Rate | None:
    """The interval of a recorded share, None where it or its number of items is missing."""
    rate, n = series.last(key), series.last(count)
    where = f"metrics.jsonl: stage {series.stage!r}"
    if rate is not None and not 0 <= rate <= 1:
        raise DataError(f"{where}: {key} is no share of 0..1: {rate!r}")
    if n is not None and (n < 0 or n != round(n)):
        raise DataError(f"{where}: {count} is no number of items: {n!r}")
    return None if rate is None or not n else wilson(round(rate * n), round(n))


def injection(series: Series) -> Injection | None:
    shift, raised = series.last("injection/shift"), series.last("injection/raised")
    n = series.last("injection_n")
    if shift is None and raised is None:
        return None
    interval = share(series, "injection/raised", "injection_n")
    return Injection(shift, raised, interval, None if n is None else round(n))


@styled
def bars(stage: str, measured: list[Agreement]) -> str:
    """One horizontal bar for each agreement, with its interval and a line at the goal."""
    figure = new_figure(5.6, 0.9 + 0.3 * len(measured))
    axes = figure.subplots()
    axes.set_title(f"{stage}: agreement with the oracle's labels")
    for y, each in enumerate(measured):
        axes.barh(y, each.rate, 0.62, color=BLUE, alpha=0.85, gid=f"agreement-{y}")
        items = ""
        if each.interval:
            low, high = each.interval.low, each.interval.high
            sides = [[max(each.rate - low, 0)], [max(high - each.rate, 0)]]
            axes.errorbar(each.rate, y, xerr=sides, color=INK, lw=1, capsize=2.5)
            items = f"  (n = {each.interval.n})"
        if each.unparsed:
            items += f" + {each.unparsed}"
        axes.text(1.03, y, percent(each.rate) + items, va="center", fontsize=8)
    axes.axvline(GOAL, color=RED, ls="--", lw=1.2, gid="goal")
    axes.set_yticks(
        range(len(measured)), [shortened(each.label, 36) for each in measured], color=INK
    )
    axes.set_ylim(len(measured) - 0.4, -0.6)
    axes.set_xlim(0, 1.42)
    axes.set_xticks(np.linspace(0, 1, 6))
    percent_ticks(axes.xaxis)
    axes.grid(axis="y", visible=False)
    return uri(figure)

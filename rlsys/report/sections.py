"""The parts of the page with the sections of stages, defined by the stage kinds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlsys.report.data import RunData
from rlsys.report.section import KindReport, Section
from rlsys.report.supervised import SUPERVISED
from rlsys.stages.registry import STAGES

# In the order of their colours in a legend.
SECTIONS: dict[str, KindReport] = {name: kind.report for name, kind in STAGES.items()}


@dataclass(frozen=True)
class Part:
    """All sections under one heading of the page; absent: text where there is none."""

    heading: str
    anchor: str
    nav: str
    sections: list[Section]
    absent: str


def kind_report(kind: str) -> KindReport:
    return SECTIONS.get(kind, SUPERVISED)


def self_evaluated() -> list[str]:
    return [kind for kind, report in SECTIONS.items() if report.self_evaluated]


def parts(run: RunData) -> list[Part]:
    """The parts of the page with the sections of stages, in order."""
    by_anchor: dict[str, list[KindReport]] = {}
    for report in sorted([*SECTIONS.values(), SUPERVISED], key=lambda report: report.order):
        by_anchor.setdefault(report.anchor, []).append(report)
    result = []
    for anchor, reports in by_anchor.items():
        sections = [
            kind_report(series.kind).section(run, series)
            for series in run.series or []
            if kind_report(series.kind).anchor == anchor
        ]
        shown = _in_one_grid([section for section in sections if not section.empty])
        absent = next((report.absent for report in reports if report.absent), "")
        if absent and run.series is None:
            absent = "No stage recorded metrics: metrics.jsonl is not in the run folder."
        if shown or absent:
            result.append(Part(reports[0].heading, anchor, reports[0].nav, shown, absent))
    return result


def _in_one_grid(sections: list[Section]) -> list[Section]:
    """The sections of three columns joined into one, after all others."""
    small = [section for section in sections if section.layout == "three_columns"]
    if not small:
        return sections
    joined = replace(
        small[0],
        title=", ".join(section.title for section in small),
        pictures=[picture for section in small for picture in section.pictures],
        paragraphs=list(dict.fromkeys(text for section in small for text in section.paragraphs)),
        highlights=[card for section in small for card in section.highlights],
    )
    return [*(section for section in sections if section not in small), joined]

"""The section on guarded generation: the rates after each of its rounds."""

from __future__ import annotations

from rlsys.report import plots
from rlsys.report.data import RunData, Series
from rlsys.report.section import Picture, Section


def guarded_section(run: RunData, series: Series) -> Section:
    caption = (
        "Answers that the guard flags are regenerated; the others are final. Round 0 is the "
        "policy without the guard. The unsafe share should fall and never rise; a rise of "
        "over-refusal is caused by false alarms of the guard."
    )
    return Section(series.stage, [Picture(plots.rounds(series), series.stage, caption)])

"""The section on a supervised stage, and on kinds without their own: loss and accuracy."""

from __future__ import annotations

from rlsys.report import plots
from rlsys.report.data import RunData, Series
from rlsys.report.section import KindReport, Picture, Section


def supervised_section(run: RunData, series: Series) -> Section:
    """Empty for a stage that recorded no loss."""
    pictures = []
    if len(series.column("loss")[0]):
        stages = {stage.name: stage for stage in run.stages or []}
        image = plots.learning(series, stages.get(series.stage))
        caption = f"{series.stage} ({series.kind})"
        pictures.append(Picture(image, f"Curves of {series.stage}", caption))
    note = (
        "Loss should fall and flatten. For a scorer, held-out accuracy (dashed) should sit near "
        "the end of the training curve and clearly above the majority baseline (dotted)."
    )
    return Section(series.stage, pictures, [note], layout="three_columns")


SUPERVISED = KindReport(
    heading="Other stages",
    anchor="stages",
    nav="Other stages",
    order=50,
    section=supervised_section,
    absent="No other stage recorded a loss in metrics.jsonl: none ran here, or all were reused.",
)

"""Formatting of numbers and names in the report."""

from __future__ import annotations

from rlsys.judging.outcomes import outcome_label
from rlsys.report.data import Series


def percent(share: float, digits: int = 1) -> str:
    """A share in 0..1 as a percentage; a narrow no-break space keeps number and sign together."""
    return f"{100 * share:.{digits}f}\u202f%"


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def counted(series: Series, prefix: str) -> str:
    """Counts under a prefix summed over the rows, as "12 × not JSON, 3 × empty"; "" for none."""
    counts = {name: float(series.column(prefix + name)[1].sum()) for name in series.names(prefix)}
    falling = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:g} × {outcome_label(name)}" for name, count in falling)

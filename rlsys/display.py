"""Progress of a run: one bar per stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

QUIET_SECONDS = 10.0  # between two plain lines


class Bar:
    """Progress of one stage."""

    def __init__(self, name: str, total: int, console: Console, progress: Progress | None) -> None:
        self.name, self.total, self.console, self.progress = name, total, console, progress
        self.done, self.last = 0, time.monotonic()
        self.task = progress.add_task(name, total=total, note="") if progress else None

    def advance(self, note: str, by: int = 1) -> None:
        self.done += by
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=self.done, note=note)
        elif time.monotonic() - self.last > QUIET_SECONDS or self.done == self.total:
            self.last = time.monotonic()
            line = f"  {self.name} {self.done}/{self.total}  {note}"
            self.console.print(line, highlight=False, soft_wrap=True)


class Display:
    """Writes to the terminal."""

    def __init__(self) -> None:
        self.console = Console()

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Bar]:
        if not self.console.is_terminal:
            yield Bar(name, total, self.console, None)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bar(name, total, self.console, progress)


def note(metrics: Mapping[str, float], *names: str) -> str:
    """A few numbers for the bar."""
    return "  ".join(f"{n} {metrics[n]:.3g}" for n in names if n in metrics)

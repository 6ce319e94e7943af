"""Seconds of every role in a stage, and how long each process waited, from a run's trace.

python -m rlsys.report.role_times RUN_DIR STAGE        of a run with --trace
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from rlsys.runtime.trace import DRIVER, FILE

Event = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What one role did in one process. calls: how many; seconds: of them together."""

    process: str
    role: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class StageTimes:
    """seconds: from the first iteration's end to the last one's; iterations: between them; waiting:
    process -> share of that time in which it ran no call.
    """

    seconds: float
    iterations: int
    work: list[Work]
    waiting: dict[str, float]


def read_events(run: Path) -> list[Event]:
    """The events of a run's trace. Raises: ValueError where some are not in it."""
    trace = json.loads((run / FILE).read_text())
    if lost := trace["otherData"]["lost"]:
        raise ValueError(f"{run / FILE}: {lost} spans are not in it; trace fewer iterations")
    events: list[Event] = trace["traceEvents"]
    return events


def stage_times(events: Sequence[Event], stage: str) -> StageTimes:
    """Raises: ValueError for a stage that is not in the trace, or has fewer than two iterations."""
    spans = [each for each in events if each["ph"] == "X"]
    named = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    of_driver = [each for each in spans if each["cat"] == DRIVER]
    whole = next((each for each in of_driver if each["name"] == f"stage {stage}"), None)
    if whole is None:
        raise ValueError(f"the trace has no stage {stage!r}")
    syncs = [each for each in of_driver if each["name"] == "sync" and _within(each, whole)]
    if len(syncs) < 2:
        raise ValueError(f"stage {stage!r} has {len(syncs)} iterations, two are needed")
    ends = sorted(each["ts"] + each["dur"] for each in syncs)
    window = {"ts": ends[0], "dur": ends[-1] - ends[0]}
    calls = [each for each in spans if each["cat"] != DRIVER and _within(each, window)]
    calls = outermost(calls)
    keys = sorted({(each["pid"], each["cat"]) for each in calls})
    work = []
    for pid, role in keys:
        mine = [each for each in calls if (each["pid"], each["cat"]) == (pid, role)]
        work.append(Work(named[pid], role, len(mine), sum(each["dur"] for each in mine) / 1e6))
    waiting = {
        named[pid]: 1 - _covered([each for each in calls if each["pid"] == pid]) / window["dur"]
        for pid in sorted({pid for pid, _ in keys})
    }
    return StageTimes(window["dur"] / 1e6, len(ends) - 1, work, waiting)


def _within(each: Event, window: Event) -> bool:
    starts, ends = each["ts"] >= window["ts"], each["ts"] + each["dur"]
    return bool(starts and ends <= window["ts"] + window["dur"])


def outermost(calls: Sequence[Event]) -> list[Event]:
    """Without those inside another one of the same thread."""
    kept: list[Event] = []
    reached: dict[tuple[int, int], float] = {}
    for each in sorted(calls, key=lambda each: (each["ts"], -each["dur"])):
        thread = (each["pid"], each["tid"])
        if each["ts"] >= reached.get(thread, float("-inf")):
            kept.append(each)
            reached[thread] = each["ts"] + each["dur"]
    return kept


def _covered(calls: Sequence[Event]) -> float:
    """Length of the union of their times."""
    total, reached = 0.0, float("-inf")
    for each in sorted(calls, key=lambda each: each["ts"]):
        end = each["ts"] + each["dur"]
        total += max(0.0, end - max(reached, each["ts"]))
        reached = max(reached, end)
    return total


def table(times: StageTimes) -> Table:
    page = Table(box=MARKDOWN)
    for head in ("process", "role", "calls an iteration", "seconds an iteration", "waiting"):
        page.add_column(head)
    for each in times.work:
        calls, seconds = each.calls / times.iterations, each.seconds / times.iterations
        waiting = f"{times.waiting[each.process]:.0%}"
        page.add_row(each.process, each.role, f"{calls:.1f}", f"{seconds:.3f}", waiting)
    page.add_row("", "an iteration", "", f"{times.seconds / times.iterations:.3f}", "")
    return page


def main() -> None:
    run, stage = sys.argv[1:]
    Console(width=160).print(table(stage_times(read_events(Path(run)), stage)))


if __name__ == "__main__":
    main()

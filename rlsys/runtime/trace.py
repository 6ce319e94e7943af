"""What ran when: spans of role methods and of drivers' phases, for a Chrome trace.

Every process of a run keeps its latest spans in memory; ``Recorder`` is the worker that hands them
out.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import psutil

FILE = "trace.json"
"""In the run directory."""
ROLE = "trace"
"""Name of the worker that every process has."""
DRIVER, PROCESS = "driver", "process"
LATEST = 100_000
"""Spans that a process keeps."""


@dataclass(frozen=True)
class Span:
    """track: a role, ``driver``, or ``process`` for what concerns all roles of one; start:
    nanoseconds since the epoch; duration: nanoseconds; thread: identifier, within its process.
    """

    track: str
    name: str
    start: int
    duration: int
    thread: int


@dataclass(frozen=True)
class Spans:
    """Of one process. lost: how many it no longer had."""

    host: str
    pid: int
    spans: tuple[Span, ...]
    lost: int = 0


_track: ContextVar[str] = ContextVar("track", default=DRIVER)
_spans: deque[Span] = deque()
_lost = 0


def _keep(one: Span) -> None:
    global _lost
    _spans.append(one)
    if len(_spans) > LATEST:
        _spans.popleft()
        _lost += 1


@contextmanager
def span(name: str, track: str | None = None) -> Iterator[None]:
    """Record the block. Args: track: by default that of the span around this one."""
    token = _track.set(track or _track.get())
    start, began = time.time_ns(), time.perf_counter_ns()
    try:
        yield
    finally:
        duration = time.perf_counter_ns() - began
        _keep(Span(_track.get(), name, start, duration, threading.get_ident()))
        _track.reset(token)


def record_start(track: str) -> None:
    """Of this process: from its first instruction to now, mostly imports."""
    created = int(psutil.Process().create_time() * 1e9)
    taken = time.time_ns() - created
    _keep(Span(track, "start", created, taken, threading.get_ident()))


class Recorder:
    """The spans of this process."""

    def take(self) -> Spans:
        """Those since the last call."""
        global _lost
        taken = tuple(_spans.popleft() for _ in range(len(_spans)))
        lost, _lost = _lost, 0
        return Spans(socket.gethostname(), os.getpid(), taken, lost)


def chrome_trace(processes: Sequence[Spans]) -> Mapping[str, Any]:
    """In Chrome's trace event format, which Perfetto opens: a process for each process of the run,
    in it a track for each role and thread. Times are in microseconds; ``lost``: spans that are not
    in it, because their process kept only the latest.
    """
    events: list[dict[str, Any]] = []
    numbers: dict[tuple[str, int], int] = {}
    tracks: dict[tuple[int, str, int], int] = {}
    for each in processes:
        process = numbers.setdefault((each.host, each.pid), len(numbers) + 1)
        for one in each.spans:
            key = (process, one.track, one.thread)
            track = tracks.setdefault(key, len(tracks) + 1)
            event = {"ph": "X", "name": one.name, "cat": one.track, "pid": process, "tid": track}
            events.append(event | {"ts": one.start / 1e3, "dur": one.duration / 1e3})
    for (host, pid), process in numbers.items():
        roles = sorted({role for number, role, _ in tracks if number == process} - {PROCESS, ROLE})
        name = f"{', '.join(roles)} ({host}, {pid})"
        events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}})
    for (process, role, _), number in tracks.items():
        named = {"ph": "M", "name": "thread_name", "pid": process, "tid": number}
        events.append(named | {"args": {"name": role}})
    lost = sum(each.lost for each in processes)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"lost": lost}}

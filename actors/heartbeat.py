"""Heartbeats: a process that does not answer is dead, whatever it is doing. No Ray here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any, Protocol

from rlsys.runtime.group import ProcessInfo
from rlsys.runtime.pending import Part

CLOSE_SECONDS = 2.0  # in which a process can put its machine in order before it is ended
PERIOD = 5.0  # seconds between two pings of a process


class Process(Protocol):
    """One process of a run. label: its roles, for errors that concern no single one; lost: fails
    when it is gone.
    """

    label: str
    rank: int
    info: ProcessInfo
    lost: Part

    def call(self, role: str, method: str, /, *args: Any, **kwargs: Any) -> Part:
        """Call a method of ``RankProcess``; returns at once."""
        ...

    def ping(self) -> Part: ...

    def kill(self, reason: str) -> None:
        """End the process; ``lost`` fails with ``reason``."""
        ...


def end(processes: Sequence[Process]) -> None:
    """End the processes of a run that is over."""
    closing = [each.call(each.label, "close").future for each in processes]
    wait(closing, CLOSE_SECONDS)
    for each in processes:
        each.kill("the run ends")


@dataclass
class Heartbeat:
    """Pings one process. limit: seconds without an answer until it counts as dead; answered: when
    it last answered, seconds.
    """

    process: Process
    limit: float
    answered: float
    _pinged: float = -PERIOD
    _ping: Part | None = None

    def check(self, now: float) -> str:
        """Ping when it is time. Returns: why the process is dead, empty while it lives."""
        if self._ping is not None and self._ping.future.done():
            if self._ping.future.exception() is None:
                self.answered = now
            self._ping = None
        if now - self.answered > self.limit:
            return f"no heartbeat for {now - self.answered:.0f} s"
        if self._ping is None and now - self._pinged >= PERIOD:
            self._pinged, self._ping = now, self.process.ping()
        return ""

    def postpone(self, seconds: float) -> None:
        """The driver itself stood still for so long."""
        self.answered += seconds

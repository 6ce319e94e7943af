"""The thread that watches over all processes of a run: heartbeats, elastic groups, status. No Ray
here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from actors.elastic import ElasticGroup
from actors.heartbeat import PERIOD, Heartbeat
from actors.status import snapshot
from rlsys.runtime.pending import Metrics, Part

TICK = 1.0  # seconds between two steps without an event
STATUS_PERIOD = 5.0
STOP_SECONDS = 10.0

Exchange = Callable[[dict[str, Any] | None], Future[int | None]]
"""Leaves a status, if there is one. Returns: the requested number of rollout workers."""


class Supervisor:
    """Implements ``rlsys.runtime.group.Monitor``. ``wake`` makes it look at once.

    Args: clock: seconds; exchange: with those who ask for the status or another number of
    workers; publish: called with every status; gauge: called with metrics by name.
    """

    def __init__(
        self, exchange: Exchange, publish: Callable[[dict[str, Any]], None],
        gauge: Callable[[Mapping[str, float]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.fixed: dict[str, list[Heartbeat]] = {}
        self.elastic: list[ElasticGroup] = []
        self.stopped = Part(Future(), "supervisor", 0, "driver")  # fails when the thread does
        self._exchange, self._publish, self._gauge = exchange, publish, gauge
        self._clock, self._woken, self._ending = clock, threading.Event(), threading.Event()
        self._stage, self._step_of_stage = "", 0
        self._stepped, self._published = clock(), float("-inf")
        self._request: Future[int | None] | None = None
        self._wanted: int | None = None
        self._status: dict[str, Any] | None = None  # that has not been exchanged yet

    def wake(self) -> None:
        self._woken.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The thread, for the length of the block."""
        thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self.wake()
            thread.join(STOP_SECONDS)

    def watch(self, name: str, beats: Sequence[Heartbeat]) -> None:
        """Processes whose death ends the run."""
        self.fixed = {**self.fixed, name: list(beats)}

    def scale(self, ranks: int) -> None:
        """Have so many ranks in every elastic group."""
        self._wanted = ranks
        for group in self.elastic:
            group.scale(ranks)

    def step(self) -> None:
        """Look at everything once."""
        now = self._clock()
        self._forgive(now)
        for beat in (beat for beats in list(self.fixed.values()) for beat in beats):
            if not beat.process.lost.future.done() and (silence := beat.check(now)):
                beat.process.kill(silence)
        for group in list(self.elastic):
            group.step(now)
        self._report(now)

    def row(self, stage: str, step: int, metrics: Mapping[str, float]) -> Metrics:
        self._stage, self._step_of_stage = stage, step
        own: Metrics = {}
        for group in self.elastic:
            added, reissued = group.take_counts()
            if added:
                own["rollout/workers"] = float(group.size)
                own["rollout/reissued_chunks"] = float(reissued)
        self._gauge({**metrics, **own})
        return own

    def events(self) -> list[str]:
        return [line for group in self.elastic for line in group.take_log()]

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._woken.wait(TICK)
                self._woken.clear()
                self.step()
        finally:
            if not self._ending.is_set():
                self.stopped.future.set_exception(RuntimeError("the supervisor's thread ended"))

    def _forgive(self, now: float) -> None:
        """Postpone every deadline by the time in which the driver itself stood still."""
        gap, self._stepped = now - self._stepped, now
        if gap > PERIOD:
            for beat in (beat for beats in self.fixed.values() for beat in beats):
                beat.postpone(gap)
            for group in self.elastic:
                group.postpone(gap)

    def _report(self, now: float) -> None:
        """Publish the status when it is time, and take up a request."""
        if now - self._published >= STATUS_PERIOD:
            self._published = now
            self._status = snapshot(
                self._stage, self._step_of_stage, self.fixed, self.elastic, now
            ) | {"scaled_to": self._wanted}
            self._publish(self._status)
        if self._request is not None and not self._request.done():
            return
        if self._request is not None and self._request.exception() is None:
            wanted = self._request.result()
            if wanted is not None and wanted != self._wanted:
                self.scale(wanted)
        self._request, self._status = self._exchange(self._status), None

"""Pending results of role methods, and how drivers wait for them.

A role method returns at once with a ``Pending``. In-process roles return finished ones, so a
driver runs unchanged on fakes, in one process, on one node and on a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlsys.errors import RoleError, RoleTimeout

T = TypeVar("T")
S = TypeVar("S")
Metrics = dict[str, float]
"""Metric name -> value."""

# When one rank fails its peers fail with it; the true cause may arrive a moment later.
CAUSE_GRACE_SECONDS = 3.0


@dataclass(eq=False)
class Part:
    """One rank's share of a result. ``rank`` and ``host`` change when the call is given to another
    rank.
    """

    future: Future[Any]
    role: str
    rank: int
    host: str


class Pending(Generic[T]):
    """A pending result from one rank or several (``concurrent.futures`` semantics).

    ``liveness`` parts finish only when a process of the run dies, which ends every wait.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        combine: Callable[[list[Any]], T],
        liveness: Sequence[Part] = (),
    ) -> None:
        self.parts, self.liveness = tuple(parts), tuple(liveness)
        self._combine = combine

    @classmethod
    def of(cls, value: T) -> Pending[T]:
        """A finished result."""
        future: Future[T] = Future()
        future.set_result(value)
        return cls([Part(future, "in-process", 0, "here")], lambda values: values[0])

    def map(self, change: Callable[[T], S]) -> Pending[S]:
        """A Pending of ``change(result)``."""
        return Pending(self.parts, lambda values: change(self._combine(values)), self.liveness)

    def now(self) -> Pending[T]:
        """With the changes of ``map`` made at once if it is settled, as it is in process; they are
        made when the result is asked for otherwise.
        """
        return Pending.of(self.result(0)) if self.settled() else self

    def settled(self) -> bool:
        """Whether all parts are done, or one has failed."""
        futures = [part.future for part in self.parts]
        return all(f.done() for f in futures) or bool(self._failures())

    def result(self, timeout: float) -> T:
        """The result. Raises: RoleError with the first cause; RoleTimeout naming the late ranks."""
        wait_settled([self], timeout)
        if self._failures():
            self._wait_for_cause()
            raise self._first_cause()
        return self._combine([part.future.result() for part in self.parts])

    def late(self) -> str:
        """The ranks without a result, as text."""
        late = [part for part in self.parts if not part.future.done()]
        return ", ".join(f"role {p.role!r} (rank {p.rank}, host {p.host})" for p in late)

    def _failures(self) -> list[tuple[Part, BaseException]]:
        return [
            (part, error)
            for part in (*self.parts, *self.liveness)
            if part.future.done() and (error := part.future.exception()) is not None
        ]

    def _wait_for_cause(self) -> None:
        """Wait briefly for the death of a process to arrive: its peers' errors often come first."""
        deadline = time.monotonic() + CAUSE_GRACE_SECONDS
        while not any(isinstance(error, ProcessDied) for _, error in self._failures()):
            unfinished = {p.future for p in (*self.parts, *self.liveness) if not p.future.done()}
            left = deadline - time.monotonic()
            if not unfinished or left <= 0 or not wait(unfinished, left, FIRST_COMPLETED).done:
                return

    def _first_cause(self) -> RoleError:
        """A rank whose process died explains its peers' broken connections, not the reverse."""
        failures = self._failures()
        failures.sort(key=lambda failure: not isinstance(failure[1], ProcessDied))
        part, error = failures[0]
        if isinstance(error, RoleError):
            return error
        named = RoleError(part.role, part.rank, part.host, f"{type(error).__name__}: {error}")
        named.__cause__ = error
        return named


class ProcessDied(RuntimeError):
    """The process of a rank is gone."""


class ClusterLost(ProcessDied):
    """With what starts processes: this driver can start none again, another one may."""


def gather(pendings: Sequence[Pending[T]]) -> Pending[list[T]]:
    """One Pending of all their results, in their order."""

    def combine(values: list[Any]) -> list[T]:
        rest = iter(values)
        return [each._combine([next(rest) for _ in each.parts]) for each in pendings]

    parts = [part for each in pendings for part in each.parts]
    return Pending(parts, combine, [part for each in pendings for part in each.liveness])


def wait_settled(pendings: Sequence[Pending[Any]], timeout: float) -> list[Pending[Any]]:
    """Block until at least one is settled; returns those that are.

    Raises: RoleTimeout after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        ready = [p for p in pendings if p.settled()]
        if ready:
            return ready
        futures = {
            part.future
            for p in pendings
            for part in (*p.parts, *p.liveness)
            if not part.future.done()
        }
        if not wait(futures, max(deadline - time.monotonic(), 0), FIRST_COMPLETED).done:
            late = "; ".join(p.late() for p in pendings)
            raise RoleTimeout(f"no answer within {timeout:.0f} s from {late}")


def as_completed(pendings: Sequence[Pending[T]], timeout: float) -> Iterator[T]:
    """Results in the order they arrive. ``timeout`` bounds the wait for the next one, in seconds,
    so that a hanging process is detected as soon however many results there are.
    """
    for some in as_settled(pendings, timeout):
        yield from some


def as_settled(pendings: Sequence[Pending[T]], timeout: float) -> Iterator[list[T]]:
    """Like ``as_completed``, but yields lists of all results since the previous list. If one of
    them failed its error is raised and the list is not yielded.
    """
    waiting = list(pendings)
    while waiting:
        ready = wait_settled(waiting, timeout)
        waiting = [pending for pending in waiting if pending not in ready]
        yield [pending.result(timeout) for pending in ready]

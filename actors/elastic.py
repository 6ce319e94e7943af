"""A group whose ranks may die, join and leave while a run goes on. No Ray here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from actors.heartbeat import Process, end
from actors.members import Member, State, Step
from actors.membership import Membership
from rlsys.config.schema import GroupConfig, TimeoutConfig
from rlsys.runtime.group import ProcessInfo, WorkerSpec
from rlsys.runtime.pending import Part, Pending
from rlsys.runtime.process_group import Rank


class ElasticGroup:
    """Implements ``RankGroup``. A rank is started, joined, given the role's worker and its current
    weights, and only then ready. Calls of a driver are written down here; the supervisor's thread
    sends them, so that everything that changes happens in one thread.

    Args: spawn: starts the process of a rank; wake: makes the supervisor call ``step`` soon;
    readable, writable: paths that every process must be able to use.
    """

    def __init__(
        self, name: str, settings: GroupConfig, timeouts: TimeoutConfig,
        spawn: Callable[[int], Process], wake: Callable[[], None],
        *, readable: Sequence[str] = (), writable: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.name, self.settings = name, settings
        self.liveness: tuple[Part, ...] = ()
        self._wake, self._lock, self._serials = wake, threading.RLock(), count()
        boot = (
            self._step("info"),
            self._step("join", Rank(), timeouts.collective),
            self._step("probe", list(readable), list(writable)),
        )
        label = "+".join(settings.roles)
        self._all = Membership(name, label, settings.ranks, timeouts, boot, spawn, wake)
        self.failed = self._all.failed

    @property
    def size(self) -> int:
        with self._lock:
            return len(self._all.in_state(State.READY))

    @property
    def processes(self) -> list[ProcessInfo]:
        with self._lock:
            return [member.process.info for member in self._all.members if member.process]

    def started(self) -> Pending[list[Any]]:
        """Every rank has its process."""
        with self._lock:
            last, ranks = self._all.boot[-1], {each.rank for each in self._all.members}
            return self._pending(self._all.wait(last, self._all.label, ranks))

    def create(self, role: str, spec: WorkerSpec) -> Pending[list[None]]:
        return self._aim((), self._step("create", role, spec), role)

    def drop(self, role: str) -> Pending[list[None]]:
        return self._aim((), self._step("drop", role), role)

    def install(self, role: str, method: str, *args: Any, whole: bool) -> Pending[list[Any]]:
        with self._lock:
            earlier = self._all.goal[:1] if whole else self._all.goal
            kept = tuple(step for step in earlier if step.args[:2] != (role, method))
            return self._aim(kept, self._step("call", role, method, *args), role)

    def call_all(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[list[Any]]:
        with self._lock:
            ready = self._all.in_state(State.READY)
            parts = [self._all.call(each, role, method, *args, **kwargs) for each in ready]
        return Pending(parts, list, self.liveness)

    def call_one(
        self, role: str, rank: int, method: str, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        with self._lock:
            member = next(each for each in self._all.members if each.rank == rank)
            part = self._all.call(member, role, method, *args, **kwargs)
        return Pending([part], lambda values: values[0], self.liveness)

    def call_any(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[Any]:
        with self._lock:
            return self._pending(self._all.leases.add(role, method, args, kwargs).part)

    def scale(self, ranks: int) -> None:
        """Have so many ranks. Those that leave finish their calls first."""
        with self._lock:
            self._all.target = ranks
        self._wake()

    def states(self) -> list[tuple[Member, State]]:
        """Every member with its state."""
        with self._lock:
            return [(each, self._all.state(each)) for each in self._all.members]

    def take_counts(self) -> tuple[int, int]:
        """Calls of any rank, and how many were given to a second one, since the last call."""
        with self._lock:
            return self._all.leases.take_counts()

    def take_log(self) -> list[str]:
        """What happened to members since the last call."""
        with self._lock:
            log, self._all.log = self._all.log, []
            return log

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            end([member.process for member in self._all.members if member.process])

    def postpone(self, seconds: float) -> None:
        """The driver stood still for so long: no process is late for that."""
        with self._lock:
            self._all.postpone(seconds)

    def step(self, now: float) -> None:
        """Take in what has happened, and do what follows. Args: now: seconds, of any one clock."""
        with self._lock:
            self._all.step(now)

    def _aim(self, kept: tuple[Step, ...], step: Step, role: str) -> Pending[list[Any]]:
        with self._lock:
            return self._pending(self._all.aim(kept, step, role))

    def _pending(self, part: Part) -> Pending[Any]:
        self._wake()
        return Pending([part], lambda values: values[0], self.liveness)

    def _step(self, method: str, *args: Any) -> Step:
        return Step(next(self._serials), method, args)

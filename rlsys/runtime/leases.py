"""Calls that any rank may answer: which rank has which, and which are still to be given out."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rlsys.errors import RoleError
from rlsys.runtime.pending import Part, ProcessDied

OUTSTANDING = 2  # leases of a rank: one is worked on, the next is prepared
MOST_ISSUES = 4  # a call whose ranks died so often is taken for the cause
NOBODY = "none: no rank is ready"


@dataclass(eq=False)
class Lease:
    """One call. part: the caller's, resolved once; answer: of the rank that has the call."""

    role: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    part: Part
    answer: Part | None = None
    issues: int = 0


@dataclass
class Leases:
    """A call is with at most one rank. The answer of a rank that was lost is not looked at."""

    waiting: deque[Lease] = field(default_factory=deque)
    held: defaultdict[int, list[Lease]] = field(default_factory=lambda: defaultdict(list))
    added: int = 0
    reissued: int = 0

    def add(self, role: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lease:
        """A new call, the last to be given out."""
        lease = Lease(role, method, args, kwargs, Part(Future(), role, -1, NOBODY))
        self.waiting.append(lease)
        self.added += 1
        return lease

    def take_counts(self) -> tuple[int, int]:
        """Calls added, and calls given out again, since the last call of this."""
        counts = self.added, self.reissued
        self.added = self.reissued = 0
        return counts

    def can_take(self, rank: int) -> bool:
        return len(self.held[rank]) < OUTSTANDING

    def give(self, rank: int, host: str, send: Callable[[Lease], Part]) -> None:
        """Send the next waiting call to a rank."""
        lease = self.waiting.popleft()
        lease.part.rank, lease.part.host = rank, host
        lease.issues += 1
        lease.answer = send(lease)
        self.held[rank].append(lease)

    def collect(self, rank: int) -> list[Any]:
        """Resolve the calls that the rank has answered. Returns: the results. Calls that its death
        ended stay with it, for ``lost``.
        """
        results = []
        for lease in list(self.held[rank]):
            answer = lease.answer
            assert answer is not None, "a lease that is held was sent"
            if not answer.future.done() or isinstance(answer.future.exception(), ProcessDied):
                continue
            self.held[rank].remove(lease)
            if (error := answer.future.exception()) is not None:
                lease.part.future.set_exception(error)
            else:
                lease.part.future.set_result(answer.future.result())
                results.append(answer.future.result())
        return results

    def broken(self, rank: int) -> BaseException | None:
        """A death that a call of this rank has met, None while there is none."""
        errors = (
            each.answer.future.exception()
            for each in self.held[rank]
            if each.answer is not None and each.answer.future.done()
        )
        return next((error for error in errors if isinstance(error, ProcessDied)), None)

    def lost(self, rank: int, error: BaseException) -> None:
        """The rank is gone: its calls are the next to be given out, in their order. A call that was
        lost too often fails with ``error``.
        """
        for lease in reversed(self.held.pop(rank, [])):
            part, lease.answer = lease.part, None
            if lease.issues >= MOST_ISSUES:
                cause = f"{lease.method} was given to {lease.issues} ranks that died: {error}"
                named = RoleError(part.role, part.rank, part.host, cause)
                named.__cause__ = error
                part.future.set_exception(named)
                continue
            part.rank, part.host = -1, NOBODY
            self.reissued += 1
            self.waiting.appendleft(lease)

    def refuse(self, error: BaseException) -> None:
        """Nobody can answer what is waiting."""
        while self.waiting:
            self.waiting.popleft().part.future.set_exception(error)

"""The members of an elastic group: one process each, its state, and when it is started again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from actors.heartbeat import Heartbeat, Process
from rlsys.errors import RoleError
from rlsys.runtime.pending import Part

FIRST_BACKOFF = 1.0  # seconds before the first new start; doubles with each
MAX_BACKOFF = 60.0
TRIES, TRIES_WITHIN = 8, 600.0  # new starts of a rank, seconds


class State(StrEnum):
    """starting: has no worker yet; stale: its weights are not the current ones; ready: gets calls;
    dead: has no process.
    """

    STARTING = "starting"
    READY = "ready"
    STALE = "stale"
    DEAD = "dead"


@dataclass(frozen=True)
class Step:
    """A call of ``RankProcess`` that brings a process towards the state it should have."""

    serial: int
    method: str
    args: tuple[Any, ...]


@dataclass
class Member:
    """A rank. made: serials of the steps it has made; doing: the step under way, its answer and its
    deadline; refused: the step that failed while the driver waited for it; version: of its weights;
    rate: tokens per second of its last call; leaving: gets no more calls.
    """

    rank: int
    process: Process | None = None
    beat: Heartbeat | None = None
    made: set[int] = field(default_factory=set)
    doing: tuple[Step, Part, float] | None = None
    refused: tuple[int, RoleError] | None = None
    version: int | None = None
    rate: float | None = None
    busy_since: float = 0.0
    leaving: bool = False
    start_at: float = 0.0
    failures: list[tuple[float, RoleError]] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.process.info.host if self.process else "?"

    def state(self, boot: Sequence[Step], goal: Sequence[Step]) -> State:
        if self.process is None:
            return State.DEAD
        if not self.has(boot) or (goal and goal[0].serial not in self.made):
            return State.STARTING
        return State.READY if goal and self.has(goal) else State.STALE

    def next_step(self, boot: Sequence[Step], goal: Sequence[Step]) -> Step | None:
        """What is missing, None while something is under way."""
        if self.doing is not None:
            return None
        missing = (step for step in (*boot, *goal) if step.serial not in self.made)
        step = next(missing, None)
        if step is not None and self.refused is not None and self.refused[0] == step.serial:
            return None
        return step

    def evict(self) -> None:
        """Drop the process, which has ended, and all that was made in it."""
        self.process = self.beat = self.doing = self.refused = self.version = self.rate = None
        self.made.clear()

    def failed(self, error: RoleError, now: float) -> RoleError | None:
        """Set when to start it again. Returns: the first cause, when it failed too often."""
        recent = [each for each in self.failures if now - each[0] < TRIES_WITHIN]
        self.failures = [*recent, (now, error)]
        if len(self.failures) > TRIES:
            return self.failures[0][1]
        self.start_at = now + min(FIRST_BACKOFF * 2 ** (len(self.failures) - 1), MAX_BACKOFF)
        return None

    def has(self, steps: Sequence[Step]) -> bool:
        return all(step.serial in self.made for step in steps)


@dataclass(eq=False)
class Wait:
    """A driver's wait until members have made a step. ``part`` is the driver's."""

    step: Step
    ranks: set[int]
    part: Part
    answers: dict[int, Any] = field(default_factory=dict)

"""Who is in an elastic group, and what each member has to do next. No Ray here.

``step`` is called by one thread alone and does everything: it takes in answers and deaths, starts
processes, brings them to the state that the group should have, and gives calls to those that are
ready.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any

from actors.heartbeat import Heartbeat, Process
from actors.members import Member, State, Step, Wait
from rlsys.batch import Rollouts
from rlsys.config.schema import TimeoutConfig
from rlsys.engines.weights import Loaded
from rlsys.errors import RlsysError, RoleError
from rlsys.runtime.leases import Lease, Leases
from rlsys.runtime.pending import Part, ProcessDied

# When all processes of a group are lost and none connects in their place: seconds since one was
# heard, and at least since the last was to be started again. A silent node is noticed in a minute.
UNHEARD_SECONDS, UNFILLED_SECONDS = 55.0, 20.0


class Membership:
    """The members of the group ``name`` of processes with the roles ``label``.

    Args: boot: steps that connect a new process: ``info``, ``join``, ``probe``; spawn: starts the
    process of a rank; wake: makes ``step`` be called soon. Attributes: goal: steps that make a
    connected process ready; failed: fails when a rank cannot be kept alive.
    """

    def __init__(
        self, name: str, label: str, ranks: int, timeouts: TimeoutConfig, boot: tuple[Step, ...],
        spawn: Callable[[int], Process], wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self.name, self.label, self.target, self.timeouts = name, label, ranks, timeouts
        self.boot, self._spawn, self._wake = boot, spawn, wake
        self.goal: tuple[Step, ...] = ()
        self.failed = Part(Future(), label, -1, "?")
        self.leases = Leases()
        self.members = [Member(rank) for rank in range(ranks)]
        self.log: list[str] = []
        self._waits: list[Wait] = []
        self._heard = float("inf")

    def step(self, now: float) -> None:
        """Take in what has happened, and do what follows. Args: now: seconds, of any one clock."""
        self._rescale()
        for member in list(self.members):
            self._advance(member, now)
        self._miss(now)
        self._settle()
        self._dispatch(now)

    def postpone(self, seconds: float) -> None:
        """The driver stood still for so long: no process is late for that."""
        self._heard += seconds
        for beat in (member.beat for member in self.members if member.beat):
            beat.postpone(seconds)

    def state(self, member: Member) -> State:
        return member.state(self.boot, self.goal)

    def in_state(self, state: State) -> list[Member]:
        """Those that do not leave."""
        return [each for each in self.members if not each.leaving and self.state(each) == state]

    def aim(self, kept: tuple[Step, ...], step: Step, role: str) -> Part:
        """Every member is to make the steps ``kept`` and then ``step``. Returns: the answers of
        those that are ready for it now.
        """
        self.goal = (*kept, step)
        self._waits = [wait for wait in self._waits if not wait.part.future.done()]
        for member in self.members:
            member.refused = None
        before = (*self.boot, *kept)
        able = [each for each in self.members if each.has(before) and not each.leaving]
        return self.wait(step, role, {each.rank for each in able})

    def wait(self, step: Step, role: str, ranks: set[int]) -> Part:
        """Until these ranks have made the step; without one, until any rank has."""
        wait = Wait(step, ranks, Part(Future(), role, min(ranks, default=-1), "?"))
        self._waits.append(wait)
        return wait.part

    def call(self, member: Member, role: str, method: str, *args: Any, **kwargs: Any) -> Part:
        """Call a method of the role's worker."""
        return self._send(member, role, "call", role, method, *args, **kwargs)

    def _rescale(self) -> None:
        staying = [member for member in self.members if not member.leaving]
        staying.sort(key=lambda each: self.state(each) != State.READY)
        for member in staying[self.target :]:
            member.leaving = True
        for member in [each for each in self.members if each.leaving]:
            if sum(not each.leaving for each in self.members) < self.target:
                member.leaving = False
            elif not self.leases.held[member.rank]:
                if member.process:
                    member.process.kill("left the group")
                self.members.remove(member)
                self.log.append(f"{self.label} {member.rank} left")
        free = (rank for rank in count() if rank not in {each.rank for each in self.members})
        while sum(not each.leaving for each in self.members) < self.target:
            self.members.append(Member(next(free)))
            self.log.append(f"{self.label} {self.members[-1].rank} joins")
        self.members.sort(key=lambda each: each.rank)

    def _advance(self, member: Member, now: float) -> None:
        """One member: its answers, its death, its next step."""
        if member.process is None:
            if now >= member.start_at and not member.leaving:
                member.process = self._spawn(member.rank)
                member.process.lost.future.add_done_callback(lambda _: self._wake())
                self._next(member, now)
            return
        if member.doing is not None and member.doing[0] is self.boot[0] and now > member.doing[2]:
            member.process.kill("no node had room for it")  # elsewhere there may be room by now
            member.evict()
            return
        self._collect(member, now)
        if (cause := self._death(member, now)) is not None:
            self._died(member, cause, now)
            return
        self._finish(member, now)
        if member.process is not None and now >= member.start_at:
            self._next(member, now)

    def _collect(self, member: Member, now: float) -> None:
        for result in self.leases.collect(member.rank):
            if isinstance(result, Rollouts):
                seconds = max(now - member.busy_since, 1e-3)
                member.rate = int(result.lengths.sum()) / seconds
            member.busy_since = now

    def _death(self, member: Member, now: float) -> BaseException | None:
        """Why the member's process is dead, None while it lives."""
        process, doing = member.process, member.doing
        assert process is not None, "only members with a process are sent steps"
        if process.lost.future.done():
            return process.lost.future.exception()
        if (broken := self.leases.broken(member.rank)) is not None:
            return broken
        if member.beat is not None and (silence := member.beat.check(now)):
            return ProcessDied(f"process {process.info.pid}: {silence}")
        if doing is not None and doing[1].future.done():
            error = doing[1].future.exception()
            return error if isinstance(error, ProcessDied) else None
        if doing is not None and now > doing[2]:
            waited = f"no answer to {doing[0].method} within {self.timeouts.start:.0f} s"
            return ProcessDied(f"process {process.info.pid}: {waited}")
        return None

    def _died(self, member: Member, error: BaseException, now: float) -> None:
        host, process = member.host, member.process
        assert process is not None, "it died"
        process.kill(str(error))
        member.evict()
        self.leases.lost(member.rank, error)
        for wait in self._waits:
            wait.ranks.discard(member.rank)
        if not member.leaving:
            self._failed(member, self._named(member, host, error), now)

    def _miss(self, now: float) -> None:
        """Give up when all are lost, for too long, and nothing connects: their node may be gone."""
        beats = [member.beat for member in self.members if member.beat]
        if beats:
            self._heard = max(beat.answered for beat in beats)
            return
        unfilled = now - max((member.start_at for member in self.members), default=now)
        failures = [failure for member in self.members for failure in member.failures]
        late = now - self._heard > UNHEARD_SECONDS and unfilled > UNFILLED_SECONDS
        if not late or not failures or self.failed.future.done():
            return
        when, last = max(failures, key=lambda each: each[0])
        cause = f"{last.cause}; no process came in its place within {now - when:.0f} s"
        final = RoleError(last.role, last.rank, last.host, cause)
        final.__cause__ = last.__cause__
        self.failed.future.set_exception(final)

    def _failed(self, member: Member, error: RoleError, now: float) -> None:
        """Start the member again after a pause, or give up."""
        self.log.append(f"{self.label} {member.rank} on {error.host}: {error.cause}")
        first = member.failed(error, now)
        if first is not None and not self.failed.future.done():
            cause = f"failed {len(member.failures)} times; first: {first.cause}"
            final = RoleError(first.role, first.rank, first.host, cause)
            final.__cause__ = first.__cause__
            self.failed.future.set_exception(final)
            member.start_at = float("inf")

    def _named(self, member: Member, host: str, error: BaseException) -> RoleError:
        named = RoleError(self.label, member.rank, host, f"{type(error).__name__}: {error}")
        named.__cause__ = error
        return named

    def _finish(self, member: Member, now: float) -> None:
        """Take the answer of the step under way."""
        if member.doing is None or not member.doing[1].future.done():
            return
        (step, part, _), member.doing = member.doing, None
        error, process = part.future.exception(), member.process
        assert process is not None, "it answered"
        if error is None and step is self.boot[2] and part.future.result():
            error = RlsysError(f"group {self.name!r}: {part.future.result()[0]}")
        if error is not None:
            self._refused(member, step, self._named(member, member.host, error), now)
            return
        answer = part.future.result()
        member.made.add(step.serial)
        if step is self.boot[0]:
            process.info, process.lost.host = answer, answer.host
            member.beat = Heartbeat(process, self.timeouts.heartbeat, now)
        if isinstance(answer, Loaded):
            member.version = answer.version
        for wait in self._waits:
            if wait.step is step:
                wait.answers[member.rank] = answer

    def _refused(self, member: Member, step: Step, error: RoleError, now: float) -> None:
        """A step raised: the error of a driver that waits for it, else the member tries again."""
        if step not in (*self.boot, *self.goal):
            return  # superseded while it was under way
        waits = [each for each in self._waits if each.step is step and member.rank in each.ranks]
        if not waits:
            member.made -= {each.serial for each in self.goal}
            for wait in self._waits:
                wait.ranks.discard(member.rank)
            self._failed(member, error, now)
            return
        member.refused = (step.serial, error)
        for wait in waits:
            if not wait.part.future.done():  # by the first of several that refuse
                wait.part.future.set_exception(error)

    def _next(self, member: Member, now: float) -> None:
        """Send the next step, if there is one."""
        step = member.next_step(self.boot, self.goal)
        if step is None or (step in self.goal and self.leases.held[member.rank]):
            return
        role = self.label if step in self.boot else step.args[0]
        part = self._send(member, role, step.method, *step.args)
        member.doing = (step, part, now + self.timeouts.start)

    def _send(self, member: Member, role: str, method: str, *args: Any, **kwargs: Any) -> Part:
        assert member.process is not None, "only members with a process get calls"
        part = member.process.call(role, method, *args, **kwargs)
        part.future.add_done_callback(lambda _: self._wake())
        return part

    def _settle(self) -> None:
        """Resolve the waits whose living ranks have all made the step, if one has."""
        for wait in [each for each in self._waits if not each.part.future.done()]:
            late = {rank for rank in wait.ranks if rank not in wait.answers}
            here = {member.rank: member for member in self.members if not member.leaving}
            late &= here.keys()
            if wait.answers and not late:
                wait.part.future.set_result([wait.answers[rank] for rank in sorted(wait.answers)])
            elif late:
                wait.part.rank = min(late)
                wait.part.host = here[wait.part.rank].host

    def _dispatch(self, now: float) -> None:
        """Give waiting calls to ready members, to the one with the fewest first."""
        while self.leases.waiting:
            ready = [m for m in self.in_state(State.READY) if self.leases.can_take(m.rank)]
            if not ready:
                break
            member = min(ready, key=lambda each: len(self.leases.held[each.rank]))
            if not self.leases.held[member.rank]:
                member.busy_since = now

            def send(lease: Lease, member: Member = member) -> Part:
                return self.call(member, lease.role, lease.method, *lease.args, **lease.kwargs)

            self.leases.give(member.rank, member.host, send)
        refusals = [member.refused for member in self.members if not member.leaving]
        if refusals and all(refusals) and refusals[0] is not None:
            self.leases.refuse(refusals[0][1])

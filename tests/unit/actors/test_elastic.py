"""Rollout workers that die, join and leave, on processes of the test and a clock of the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from actors.elastic import ElasticGroup
from actors.heartbeat import PERIOD
from actors.members import FIRST_BACKOFF, TRIES, State
from rlsys.config.schema import GroupConfig, TimeoutConfig
from rlsys.engines.weights import Loaded
from rlsys.errors import RoleError, RoleTimeout
from rlsys.runtime.pending import Pending, ProcessDied
from rlsys.stages.failure import restartable
from tests.fake_processes import FakeProcess, prompt_answer

BOOT = ["info", "join", "probe"]
Answer = Callable[[str, tuple[Any, ...]], Any]


class World:
    """A group, every process it ever started, and the time."""

    def __init__(self, ranks: int = 2) -> None:
        self.now = 0.0
        self.answer: Answer = prompt_answer
        self.processes: list[FakeProcess] = []
        self.room = True
        config, timeouts = GroupConfig(roles=["rollout"], ranks=ranks), TimeoutConfig()
        self.group = ElasticGroup("rollout", config, timeouts, self.spawn, lambda: None)
        self.limit = timeouts.heartbeat

    def spawn(self, rank: int) -> FakeProcess:
        process = FakeProcess(rank, answer=lambda method, args: self.answer(method, args))
        process.placed = self.room
        self.processes.append(process)
        return process

    def steps(self, number: int = 12) -> World:
        """Enough for everybody to get where nobody hinders it."""
        for _ in range(number):
            self.group.step(self.now)
        return self

    def serving(self, version: int = 1) -> World:
        """All ranks are ready with these weights."""
        self.steps()
        create, load = self.group.create("rollout", "spec"), self.load(version)  # type: ignore[arg-type]
        self.steps()
        create.result(0), load.result(0)
        return self

    def load(self, version: int) -> Pending[list[Any]]:
        return self.group.install("rollout", "load", version, whole=False)

    def draw(self, *names: str) -> list[Pending[Any]]:
        """Calls that stay open until a test answers them."""
        plain = self.answer
        self.answer = lambda method, args: ... if args[1:2] == ("draw",) else plain(method, args)
        return [self.group.call_any("rollout", "draw", name) for name in names]

    def latest(self, rank: int) -> FakeProcess:
        return [each for each in self.processes if each.rank == rank][-1]

    def states(self) -> dict[int, State]:
        return {member.rank: state for member, state in self.group.states()}

    def answer_all(self) -> None:
        """Every open draw is answered by its name."""
        for process in self.processes:
            for asked in process.open("draw"):
                if not process.killed:
                    asked.future.set_result(asked.args[2])
        self.steps()


def test_a_rank_is_connected_created_and_loaded_in_this_order_and_only_then_ready() -> None:
    world = World()
    started = world.group.started()
    world.steps(1)
    assert not started.settled()
    assert set(world.states().values()) == {State.STARTING}
    world.steps()
    started.result(0)
    assert [each.done() for each in world.processes] == [BOOT, BOOT]
    create = world.group.create("rollout", "spec")  # type: ignore[arg-type]
    world.steps()
    create.result(0)
    assert world.group.size == 2  # there is nothing more that it should have
    loaded = world.load(7)
    assert set(world.states().values()) == {State.STALE}
    assert world.group.size == 0
    world.steps()
    assert loaded.result(0) == [Loaded(7)] * 2
    assert set(world.states().values()) == {State.READY}
    assert world.latest(1).done() == [*BOOT, "create", "load"]


def test_calls_go_to_the_ranks_with_the_fewest_two_each() -> None:
    world = World().serving()
    chunks = world.draw(*"abcdef")
    world.steps()
    given = [[asked.args[2] for asked in each.open("draw")] for each in world.processes]
    assert given == [["a", "c"], ["b", "d"]]
    world.processes[1].open("draw")[0].future.set_result("b")
    world.steps()
    assert [asked.args[2] for asked in world.processes[1].open("draw")] == ["d", "e"]
    for _ in range(3):
        world.answer_all()
    assert [chunk.result(0) for chunk in chunks] == list("abcdef")


def test_the_calls_of_a_rank_that_dies_are_answered_by_another_once() -> None:
    world = World().serving()
    chunks = world.draw(*"abcd")
    world.steps()
    first = world.latest(0)
    first.lost.future.set_exception(ProcessDied("killed"))
    late = first.open("draw")[0].future
    world.steps()
    late.set_result("an answer of the dead")
    world.answer_all()
    world.answer_all()
    assert [chunk.result(0) for chunk in chunks] == list("abcd")
    assert [asked.args[2] for asked in world.latest(1).asked if asked.method == "call"][1:] == [
        "b", "d", "a", "c",
    ]  # fmt: skip
    assert world.group.take_counts() == (4, 2)
    assert "killed" in world.group.take_log()[0]


def test_a_dead_rank_comes_back_with_the_current_weights_before_its_first_call() -> None:
    world = World().serving(version=1)
    world.load(2)
    world.steps()
    world.latest(0).lost.future.set_exception(ProcessDied("killed"))
    world.steps()
    assert world.states() == {0: State.DEAD, 1: State.READY}
    world.now += FIRST_BACKOFF / 2
    assert len(world.steps().processes) == 2
    chunks = world.draw(*"abcde")
    world.now += FIRST_BACKOFF
    world.steps()
    again = world.latest(0)
    assert len(world.processes) == 3
    assert again.done() == [*BOOT, "create", "load", "draw", "draw"]
    assert again.asked[4].args == ("rollout", "load", 2)
    assert [member.version for member, _ in world.group.states()] == [2, 2]
    for _ in range(3):
        world.answer_all()
    assert [chunk.result(0) for chunk in chunks] == list("abcde")


def test_weights_that_replace_everything_are_all_that_a_new_rank_loads() -> None:
    world = World(1).serving(version=1)
    world.group.install("rollout", "load_checkpoint", "folder", 4, whole=True)
    world.steps()
    world.load(5)
    world.steps()
    world.latest(0).lost.future.set_exception(ProcessDied("killed"))
    world.steps()
    world.now += FIRST_BACKOFF
    world.steps()
    assert world.latest(0).done() == [*BOOT, "create", "load_checkpoint", "load"]
    assert world.latest(0).asked[-1].args[2] == 5


def test_a_driver_does_not_wait_for_a_rank_that_joins_and_it_gets_the_newest_weights() -> None:
    world = World().serving(version=1)
    world.latest(0).lost.future.set_exception(ProcessDied("killed"))
    world.steps()
    world.now += FIRST_BACKOFF
    world.answer = lambda method, args: ... if method == "create" else prompt_answer(method, args)
    world.steps()
    assert world.states() == {0: State.STARTING, 1: State.READY}
    loaded = world.load(2)
    world.steps()
    assert loaded.result(0) == [Loaded(2)]
    world.latest(0).asked[-1].future.set_result(None)
    world.steps()
    assert [asked.args[2] for asked in world.latest(0).asked if asked.method == "call"] == [2]
    assert world.group.size == 2


def test_calls_wait_for_a_rank_when_none_is_ready_and_the_wait_has_the_drivers_deadline() -> None:
    world = World(1).serving()
    (chunk,) = world.draw("a")
    world.steps()
    world.latest(0).lost.future.set_exception(ProcessDied("killed"))
    world.steps()
    with pytest.raises(RoleTimeout, match="no rank is ready"):
        chunk.result(0.01)
    world.now += FIRST_BACKOFF
    world.steps().answer_all()
    assert chunk.result(0) == "a"


def test_if_all_die_in_a_sync_it_is_over_when_the_first_is_back() -> None:
    world = World().serving()
    world.answer = lambda method, args: ... if args[1:2] == ("load",) else None
    loaded = world.load(3)
    world.steps()
    world.answer = prompt_answer
    for rank in (0, 1):
        world.latest(rank).lost.future.set_exception(ProcessDied("killed"))
    world.steps()
    assert not loaded.settled()
    world.now += FIRST_BACKOFF
    world.steps()
    assert all(each == Loaded(3) for each in loaded.result(0))


def test_a_stopped_rank_is_dead_after_the_limit_and_a_busy_one_is_not() -> None:
    world = World().serving()
    chunks = world.draw("a", "b")
    world.steps()
    world.latest(0).stopped = True
    beats = int(world.limit // PERIOD)
    for _ in range(beats + 2):
        world.now += PERIOD
        world.group.step(world.now)
    assert "no heartbeat for" in world.latest(1).killed or not world.latest(1).killed
    first = world.processes[0]
    assert "no heartbeat for 3" in first.killed
    assert world.processes[1].killed == ""  # busy for as long, but it answers
    assert "rollout 0 on node0" in world.group.take_log()[0]
    world.answer_all()
    world.answer_all()
    assert [chunk.result(0) for chunk in chunks] == ["a", "b"]


def test_a_driver_that_stood_still_itself_takes_nobody_for_dead() -> None:
    world = World().serving()
    world.now += 10 * world.limit
    world.group.postpone(10 * world.limit)
    world.steps()
    assert [each.killed for each in world.processes] == ["", ""]


def test_a_group_whose_only_node_is_gone_is_given_up_within_a_minute() -> None:
    world = World(1).serving()
    (chunk,) = world.draw("a")
    cut, world.room, world.processes[0].stopped = world.now, False, True
    while not world.group.failed.future.done():
        world.now += 1.0
        world.steps(1)
        assert world.now < cut + 60
    chunk.liveness = (world.group.failed,)
    with pytest.raises(RoleError, match=r"rank 0, host node0.*no heartbeat for 3\d s; no process"):
        chunk.result(0)
    assert restartable(world.group.failed.future.exception())  # type: ignore[arg-type]


def test_a_rank_that_keeps_dying_is_started_ever_later_and_then_given_up() -> None:
    world = World(1).serving()
    pauses = []
    for number in range(TRIES):
        world.latest(0).lost.future.set_exception(ProcessDied(f"death {number}"))
        world.steps()
        assert not world.group.failed.future.done()
        before = world.now
        while len(world.processes) == number + 1:
            world.now += 0.5
            world.group.step(world.now)
        pauses.append(world.now - before)
        world.steps()
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    world.latest(0).lost.future.set_exception(ProcessDied("the last"))
    world.steps()
    error = world.group.failed.future.exception(0)
    assert isinstance(error, RoleError)
    assert "death 0" in error.cause
    assert isinstance(error.__cause__, ProcessDied)
    assert (error.rank, error.host) == (0, "node0")


def test_an_error_while_a_driver_waits_is_the_drivers() -> None:
    def fails(method: str, args: tuple[Any, ...]) -> Any:
        if args[1:2] == ("load",):
            raise ValueError("tensor x")
        return prompt_answer(method, args)

    world = World().serving()
    world.answer = fails
    loaded = world.load(2)
    world.steps()
    with pytest.raises(RoleError, match=r"rank 0, host node0.*tensor x"):
        loaded.result(0)
    calls = len(world.latest(0).asked)
    world.now += 20.0
    chunk = world.group.call_any("rollout", "draw", "a")
    world.steps()
    assert len(world.latest(0).asked) == calls, "nobody asked for another try"
    with pytest.raises(RoleError, match="tensor x"):
        chunk.result(0)
    world.answer = prompt_answer
    world.load(3)
    world.steps()
    chunks = world.draw(*"abcdef")
    world.steps()
    for _ in range(4):
        world.answer_all()
    assert [chunk.result(0) for chunk in chunks] == list("abcdef")


def test_a_rank_that_joins_tries_again_when_its_weights_were_replaced_under_it() -> None:
    world = World().serving()
    world.latest(0).lost.future.set_exception(ProcessDied("killed"))
    torn = [True]

    def once(method: str, args: tuple[Any, ...]) -> Any:
        if args[1:2] == ("load",) and torn:
            torn.clear()
            raise ValueError("fingerprint")
        return prompt_answer(method, args)

    world.answer = once
    world.steps()
    world.now += FIRST_BACKOFF
    world.steps()
    assert world.states()[0] != State.READY
    world.now += 2 * FIRST_BACKOFF
    world.steps()
    assert world.latest(0).done() == [*BOOT, "create", "load", "create", "load"]
    assert world.group.size == 2


def test_a_path_that_a_process_cannot_use_ends_the_start() -> None:
    world = World()
    world.answer = lambda method, args: ["/runs: not writable on node0"] if method == "probe" else 0
    started = world.group.started()
    world.steps()
    with pytest.raises(RoleError, match="not writable on node0"):
        started.result(0)


def test_more_ranks_are_ready_before_their_first_call_and_fewer_finish_theirs() -> None:
    world = World().serving(version=4)
    chunks = world.draw(*"abcd")
    world.steps()
    world.group.scale(3)
    world.steps()
    assert world.latest(2).done() == [*BOOT, "create", "load"]
    assert world.latest(2).asked[-1].args[2] == 4
    chunks += world.draw("e")
    world.steps()
    assert [asked.args[2] for asked in world.latest(2).open("draw")] == ["e"]
    world.group.scale(1)
    chunks += world.draw("f")
    world.steps()
    assert [each.killed for each in world.processes] == ["", "", ""], "they finish first"
    world.answer_all()
    world.answer_all()
    assert [chunk.result(0) for chunk in chunks] == list("abcdef")
    assert [bool(each.killed) for each in world.processes] == [False, True, True]
    assert world.latest(1).done().count("draw") == 2, "one that leaves gets nothing more"
    assert world.states() == {0: State.READY}


def test_those_that_are_not_ready_leave_first() -> None:
    world = World().serving()
    world.latest(0).lost.future.set_exception(ProcessDied("killed"))
    world.steps()
    world.group.scale(1)
    world.steps()
    assert world.states() == {1: State.READY}


def test_a_process_that_finds_no_node_keeps_nobody_waiting() -> None:
    world = World().serving()
    plain = FakeProcess.call
    world.group.scale(3)
    spawned = world.spawn

    def pending(rank: int) -> FakeProcess:
        process = spawned(rank)
        process.call = lambda role, method, /, *args, **kwargs: plain(  # type: ignore[method-assign]
            process, role, "waits for a node", *args, **kwargs
        )
        return process

    world.group._all._spawn = pending
    world.answer = lambda method, args: (
        ... if method == "waits for a node" else prompt_answer(method, args)
    )
    world.steps()
    loaded = world.load(2)
    world.steps()
    assert loaded.result(0) == [Loaded(2)] * 2
    for _ in range(3 * TRIES):  # each time it is sought for anew, and is no death
        assert world.states()[2] == State.STARTING
        assert world.latest(2).killed == ""
        world.now += 200.0
        world.group.postpone(200.0)
        world.steps()
    assert not world.group.failed.future.done()
    assert world.group.take_log() == ["rollout 2 joins"]

"""Heartbeats of processes that are not replaced, status, and requests for other numbers."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from actors.elastic import ElasticGroup
from actors.heartbeat import PERIOD, Heartbeat
from actors.status import scaled_to, write_status
from actors.supervisor import STATUS_PERIOD, Supervisor
from rlsys.config.schema import GroupConfig, TimeoutConfig
from rlsys.runtime.pending import Metrics, ProcessDied
from tests.fake_processes import FakeProcess

LIMIT = 30.0


class Clock:
    """The time, as the test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Office:
    """A supervisor with one trainer, two rollout workers, and who talks to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.wanted: int | None = None
        self.published: list[dict[str, Any]] = []
        self.gauges: list[Metrics] = []
        self.supervisor = Supervisor(
            self.exchange, self.published.append, lambda m: self.gauges.append(dict(m)), self.clock
        )
        self.trainer = FakeProcess(0, label="policy+reward")
        self.trainer.info = self.trainer.call("x", "info").future.result()
        self.supervisor.watch("train", [Heartbeat(self.trainer, LIMIT, 0.0)])
        self.rollouts: list[FakeProcess] = []
        settings, timeouts = GroupConfig(roles=["rollout"], ranks=2), TimeoutConfig()
        self.group = ElasticGroup("rollout", settings, timeouts, self.spawn, self.supervisor.wake)
        self.supervisor.elastic.append(self.group)

    def spawn(self, rank: int) -> FakeProcess:
        self.rollouts.append(FakeProcess(rank))
        return self.rollouts[-1]

    def exchange(self, status: dict[str, Any] | None) -> Future[int | None]:
        future: Future[int | None] = Future()
        future.set_result(self.wanted)
        return future

    def pass_time(self, seconds: float) -> None:
        """In steps of a second, as the thread does at least."""
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            self.supervisor.step()

    def serve(self) -> None:
        self.group.create("rollout", "spec")  # type: ignore[arg-type]
        self.group.install("rollout", "load", 3, whole=False)
        self.pass_time(10)


def test_a_process_that_is_stopped_is_killed_with_its_silence_as_the_cause() -> None:
    office = Office()
    office.pass_time(10)
    office.trainer.stopped = True
    office.pass_time(LIMIT - PERIOD)
    assert office.trainer.killed == ""
    office.pass_time(2 * PERIOD)
    assert office.trainer.killed == "no heartbeat for 31 s"
    error = office.trainer.lost.future.exception(0)
    assert isinstance(error, ProcessDied)
    pings = office.trainer.pings
    office.pass_time(20)
    assert office.trainer.pings == pings, "the dead are left alone"


def test_a_process_that_answers_lives_and_is_asked_every_five_seconds() -> None:
    office = Office()
    office.pass_time(100)
    assert office.trainer.killed == ""
    assert office.trainer.pings == pytest.approx(100 / PERIOD, abs=1)


def test_nobody_is_late_for_a_time_in_which_the_driver_stood_still() -> None:
    office = Office()
    office.serve()
    office.clock.now += 20 * LIMIT
    office.supervisor.step()
    assert office.trainer.killed == ""
    assert [each.killed for each in office.rollouts] == ["", ""]


def test_the_status_says_who_is_where_and_in_which_state() -> None:
    office = Office()
    office.serve()
    office.supervisor.row("ppo", 7, {"reward": 1.0})
    office.pass_time(STATUS_PERIOD + 1)
    status = office.published[-1]
    assert (status["stage"], status["step"]) == ("ppo", 7)
    train, first, second = status["processes"]
    assert (train["group"], train["rank"], train["roles"]) == ("train", 0, ["policy", "reward"])
    assert (train["state"], train["weight_version"]) == ("ready", None)
    assert (first["rank"], second["rank"]) == (0, 1)
    assert first["state"] == second["state"] == "ready"
    assert (first["weight_version"], first["host"], first["pid"]) == (3, "node0", 100)
    assert status["time"] - PERIOD - 1 <= first["last_heartbeat"] <= status["time"]
    office.rollouts[0].kill("killed")
    office.supervisor.step()
    assert [member.rank for member, state in office.group.states() if state == "dead"] == [0]


def test_the_status_is_written_every_five_seconds_whole(tmp_path: Path) -> None:
    office = Office()
    office.pass_time(21)
    assert len(office.published) == pytest.approx(21 / STATUS_PERIOD, abs=1)
    write_status(tmp_path, office.published[-1])
    assert json.loads((tmp_path / "status.json").read_text()) == office.published[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_request_is_taken_up_once_and_survives_the_run(tmp_path: Path) -> None:
    office = Office()
    office.serve()
    office.wanted = 3
    office.pass_time(10)
    assert len(office.rollouts) == 3
    assert office.group.size == 3
    assert scaled_to(tmp_path) is None
    write_status(tmp_path, office.published[-1])
    assert scaled_to(tmp_path) == 3
    office.wanted = 1
    office.pass_time(10)
    assert office.group.size == 1
    again = Office()
    again.serve()
    again.supervisor.scale(3)
    again.pass_time(10)
    assert again.group.size == 3
    assert again.published[-1]["scaled_to"] == 3


def test_rows_have_the_workers_where_calls_were_made_and_gauges_everything() -> None:
    office = Office()
    office.serve()
    assert office.supervisor.row("sft", 1, {"loss": 2.0}) == {}
    pending = office.group.call_any("rollout", "draw", "a")
    office.pass_time(2)
    pending.result(0)
    row = office.supervisor.row("ppo", 1, {"reward": 0.5})
    assert row == {"rollout/workers": 2.0, "rollout/reissued_chunks": 0.0}
    assert office.gauges[-1] == row | {"reward": 0.5}
    office.rollouts[0].lost.future.set_exception(ProcessDied("oom"))
    office.pass_time(1)
    (event,) = office.supervisor.events()
    assert "rollout 0 on node0: ProcessDied: oom" in event
    assert office.supervisor.events() == []


def test_the_thread_steps_when_woken_and_its_end_ends_the_waits() -> None:
    office = Office()
    stepped = threading.Event()
    office.supervisor._publish = lambda status: stepped.set()
    with office.supervisor.running():
        office.supervisor.wake()
        assert stepped.wait(5.0)
    assert not office.supervisor.stopped.future.done()

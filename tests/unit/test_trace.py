"""Spans of a process, and the trace of several."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlsys.drivers.timing import timed
from rlsys.report.role_times import read_events, stage_times
from rlsys.runtime import trace
from rlsys.runtime.process import RankProcess
from rlsys.runtime.trace import (
    DRIVER,
    PROCESS,
    ROLE,
    Recorder,
    Span,
    Spans,
    chrome_trace,
    record_start,
    span,
)


class Sleeper:
    def work(self) -> int:
        with span("forward"):
            return 7


def take() -> tuple[Span, ...]:
    return Recorder().take().spans


def test_a_call_is_a_span_of_its_role_and_holds_those_inside_it() -> None:
    process = RankProcess(0, {}, "token")
    take()
    process.workers["reward"] = Sleeper()
    with timed({}, "score"):
        assert process.call("reward", "work") == 7
    forward, work, score = take()
    assert [each.name for each in (forward, work, score)] == ["forward", "work", "score"]
    assert [each.track for each in (forward, work, score)] == ["reward", "reward", DRIVER]
    # the starts are on the wall clock, the durations are not
    assert score.duration >= work.duration >= forward.duration
    assert score.start <= work.start <= forward.start
    assert take() == (), "what was handed out is gone"


def test_seconds_of_roles_and_waiting_by_hand() -> None:
    """One whole iteration is counted: from the end of the first sync to that of the second."""

    def at(track: str, name: str, start: float, end: float, thread: int = 1) -> Span:
        return Span(track, name, int(start * 1e9), int((end - start) * 1e9), thread)

    driver = [at(DRIVER, "stage ppo", 0, 20), at(DRIVER, "sync", 2, 4), at(DRIVER, "sync", 13, 14),
              at(DRIVER, "sync", 21, 22)]  # fmt: skip
    train = [at("policy", "update", 1, 3), at("policy", "update", 8, 12),
             at("policy", "backward", 9, 11), at("reward", "score", 5, 6)]  # fmt: skip
    rollout = [at("rollout", "draw", 5, 8, 1), at("rollout", "draw", 6, 9, 2)]
    processes = [Spans("a", 1, tuple(driver)), Spans("a", 2, tuple(train)),
                 Spans("a", 3, tuple(rollout))]  # fmt: skip
    events = chrome_trace(processes)["traceEvents"]
    times = stage_times(events, "ppo")
    assert (times.seconds, times.iterations) == (10.0, 1)
    assert {each.role: (each.calls, each.seconds) for each in times.work} == {
        "policy": (1, 4.0),
        "reward": (1, 1.0),
        "rollout": (2, 6.0),
    }
    assert times.waiting == {"policy, reward (a, 2)": 0.5, "rollout (a, 3)": pytest.approx(0.6)}
    with pytest.raises(ValueError, match="no stage 'dpo'"):
        stage_times(events, "dpo")


def test_a_process_records_its_own_start() -> None:
    take()
    record_start(PROCESS)
    (start,) = take()
    assert (start.track, start.name) == (PROCESS, "start")
    created = psutil.Process().create_time()
    assert start.start / 1e9 == pytest.approx(created)
    assert (start.start + start.duration) / 1e9 == pytest.approx(time.time(), abs=5)


def test_spans_that_a_process_no_longer_has_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    take()
    monkeypatch.setattr(trace, "LATEST", 3)
    for name in "abcde":
        with span(name):
            pass
    taken = Recorder().take()
    assert ([each.name for each in taken.spans], taken.lost) == (["c", "d", "e"], 2)
    assert Recorder().take().lost == 0
    (tmp_path / trace.FILE).write_text(json.dumps(chrome_trace([taken])))
    with pytest.raises(ValueError, match="2 spans are not in it"):
        read_events(tmp_path)


def test_a_failed_call_is_in_the_trace_too() -> None:
    process = RankProcess(0, {}, "token")
    take()
    process.workers["reward"] = object()
    with pytest.raises(AttributeError):
        process.call("reward", "missing")
    assert [each.name for each in take()] == ["missing"]
    assert process.call(ROLE, "take").spans == ()


def test_spans_of_two_threads_do_not_share_a_track() -> None:
    take()

    def work() -> None:
        with span("generate", "rollout"):
            both.wait(5)

    both = threading.Barrier(2)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    events = events_of([Spans("here", 1, take())])
    assert [event["cat"] for event in events] == ["rollout", "rollout"]
    assert len({event["tid"] for event in events}) == 2


def events_of(processes: list[Spans]) -> list[dict[str, Any]]:
    return [each for each in chrome_trace(processes)["traceEvents"] if each["ph"] == "X"]


def test_the_trace_has_a_track_per_role_in_microseconds() -> None:
    policy = Spans("a", 7, (Span("policy", "update", 5_000_000, 2_000, 1),))
    again = Spans("a", 7, (Span("reward", "score", 6_000_000, 1_000, 1),))
    driver = Spans("b", 7, (Span(DRIVER, "update", 4_000_000, 9_000, 1),))
    update, score, phase = events_of([policy, again, driver])
    assert (update["ts"], update["dur"]) == (5_000.0, 2.0)
    assert update["pid"] == score["pid"] != phase["pid"]
    assert len({update["tid"], score["tid"], phase["tid"]}) == 3
    names = {
        (each["name"], each["args"]["name"])
        for each in chrome_trace([policy, again, driver])["traceEvents"]
        if each["ph"] == "M"
    }
    assert names == {
        ("process_name", "policy, reward (a, 7)"),
        ("process_name", "driver (b, 7)"),
        ("thread_name", "policy"),
        ("thread_name", "reward"),
        ("thread_name", "driver"),
    }

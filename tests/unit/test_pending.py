"""Results under way: combination, order, deadlines, first causes."""

import pickle
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

import rlsys.runtime.pending as module
from rlsys.errors import RlsysError, RoleError, RoleTimeout
from rlsys.runtime.pending import Part, Pending, ProcessDied, as_completed, as_settled, wait_settled


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAUSE_GRACE_SECONDS", 0.05)


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def part(future: Future[Any], rank: int = 0, role: str = "policy") -> Part:
    return Part(future, role, rank, f"node{rank}")


def pending(futures: Sequence[Future[Any]], liveness: Sequence[Part] = ()) -> Pending[list[Any]]:
    return Pending([part(f, rank) for rank, f in enumerate(futures)], list, liveness)


def test_the_answers_of_all_ranks_are_combined_in_rank_order() -> None:
    first, second = Future[int](), Future[int]()
    answer = Pending([part(first), part(second, 1)], lambda values: values[0] - values[1])
    second.set_result(2)
    assert not answer.settled()
    first.set_result(10)
    assert answer.settled()
    assert answer.result(1.0) == 8


def test_a_finished_answer_is_there_at_once() -> None:
    assert Pending.of("here").settled()
    assert Pending.of("here").result(0.0) == "here"
    assert Pending.of(None).result(0.0) is None


def test_results_come_in_the_order_they_arrive() -> None:
    futures = [Future[str]() for _ in range(3)]
    answers = [Pending([part(f)], lambda values: values[0]) for f in futures]
    arriving = as_completed(answers, 1.0)
    for name, future in (("c", futures[2]), ("a", futures[0]), ("b", futures[1])):
        future.set_result(name)
        assert next(arriving) == name
    assert list(arriving) == []


def test_results_that_are_there_come_together() -> None:
    futures = [Future[str]() for _ in range(4)]
    arriving = as_settled([Pending([part(f)], lambda v: v[0]) for f in futures], 1.0)
    futures[2].set_result("c")
    assert next(arriving) == ["c"]
    futures[3].set_result("d")
    futures[0].set_result("a")
    assert sorted(next(arriving)) == ["a", "d"]
    futures[1].set_exception(ValueError("spilt"))
    with pytest.raises(RoleError, match="spilt"):
        next(arriving)


def test_an_answer_from_another_thread_ends_the_wait() -> None:
    future: Future[int] = Future()
    timer = threading.Timer(0.05, future.set_result, [3])
    timer.start()
    started = time.monotonic()
    assert pending([future]).result(5.0) == [3]
    assert time.monotonic() - started < 2.0
    timer.join()


def test_a_late_rank_is_named_and_the_others_are_not() -> None:
    waiting = pending([done(1), Future(), done(3), Future()])
    with pytest.raises(RoleTimeout) as caught:
        waiting.result(0.02)
    text = str(caught.value)
    assert "role 'policy' (rank 1, host node1)" in text
    assert "role 'policy' (rank 3, host node3)" in text
    assert "node0" not in text
    assert "node2" not in text


def test_as_completed_gives_up_when_nothing_more_arrives() -> None:
    stuck = pending([Future()])
    arriving = as_completed([Pending.of([1]), stuck], 0.05)
    assert next(arriving) == [1]
    with pytest.raises(RoleTimeout, match="node0"):
        next(arriving)


def test_wait_settled_returns_only_what_is_settled() -> None:
    stuck, here = pending([Future()]), pending([done(1)])
    assert wait_settled([stuck, here], 1.0) == [here]


def test_as_completed_waits_for_a_long_row_of_answers_that_keep_arriving() -> None:
    futures: list[Future[Any]] = [Future() for _ in range(6)]
    timers = [
        threading.Timer(0.1 * (number + 1), future.set_result, [number])
        for number, future in enumerate(futures)
    ]
    for timer in timers:
        timer.start()
    found = [answer[0] for answer in as_completed([pending([f]) for f in futures], 0.4)]
    assert sorted(found) == list(range(6))


def test_a_failed_rank_is_named_with_its_reason() -> None:
    broken = pending([done(1), failed(KeyError("tower"))])
    with pytest.raises(RoleError, match=r"'policy' failed \(rank 1, host node1\): KeyError") as got:
        broken.result(1.0)
    assert (got.value.role, got.value.rank, got.value.host) == ("policy", 1, "node1")
    assert isinstance(got.value.__cause__, KeyError)


def test_one_failed_rank_settles_the_answer() -> None:
    broken = pending([Future(), failed(ValueError("x"))])
    assert broken.settled()
    with pytest.raises(RoleError, match="rank 1"):
        broken.result(5.0)


def test_a_dead_process_explains_its_peers_broken_connections() -> None:
    broken = pending([failed(ConnectionError("reset")), failed(ProcessDied("killed"))])
    with pytest.raises(RoleError, match="ProcessDied: killed") as caught:
        broken.result(1.0)
    assert caught.value.rank == 1


def test_the_first_cause_may_come_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAUSE_GRACE_SECONDS", 5.0)
    late: Future[Any] = Future()
    timer = threading.Timer(0.05, late.set_exception, [ProcessDied("killed")])
    timer.start()
    broken = pending([failed(ConnectionError("reset")), late])
    with pytest.raises(RoleError, match="ProcessDied"):
        broken.result(1.0)
    timer.join()


def test_the_first_cause_may_come_from_liveness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAUSE_GRACE_SECONDS", 5.0)
    alive: Future[Any] = Future()
    timer = threading.Timer(0.05, alive.set_exception, [ProcessDied("killed")])
    timer.start()
    broken = pending([failed(ConnectionError("reset"))], liveness=[part(alive, 1)])
    try:
        with pytest.raises(RoleError, match="ProcessDied"):
            broken.result(1.0)
    finally:
        timer.join()


def test_a_process_that_dies_ends_a_wait_for_a_part_that_never_answers() -> None:
    alive: Future[Any] = Future()
    waiting = pending([Future()], liveness=[Part(alive, "cost", 2, "node9")])
    assert not waiting.settled()
    timer = threading.Timer(0.05, alive.set_exception, [ProcessDied("oom")])
    timer.start()
    started = time.monotonic()
    with pytest.raises(RoleError, match=r"'cost' failed \(rank 2, host node9\).*oom"):
        waiting.result(30.0)
    assert time.monotonic() - started < 5.0
    timer.join()


def test_a_process_that_dies_ends_as_completed() -> None:
    dead = Part(failed(ProcessDied("oom")), "cost", 2, "node9")
    with pytest.raises(RoleError, match="oom"):
        list(as_completed([pending([Future()], liveness=[dead])], 30.0))


def test_a_living_process_changes_nothing() -> None:
    assert pending([done(1)], liveness=[part(Future(), 7)]).result(1.0) == [1]
    with pytest.raises(RoleTimeout) as caught:
        pending([Future()], liveness=[part(Future(), 7)]).result(0.02)
    assert "node7" not in str(caught.value)  # it is not late: it never answers


def test_a_role_error_survives_pickle() -> None:
    error = RoleError("policy", 1, "node1", "ProcessDied: killed")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is RoleError
    assert isinstance(copy, RlsysError)
    assert str(copy) == str(error)
    assert (copy.role, copy.rank, copy.host, copy.cause) == (
        "policy", 1, "node1", "ProcessDied: killed",
    )  # fmt: skip

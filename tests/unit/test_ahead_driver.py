"""PPO-Lagrangian one step ahead: what is drawn when, under which weights, and against whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch

from rlsys.batch import PromptCursor, Rollouts, SampleRequest, Scores
from rlsys.config.engine import GapConfig
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import TimeoutConfig
from rlsys.config.updates import PpoConfig
from rlsys.drivers.constraint import Constraint
from rlsys.drivers.multiplier import Multiplier
from rlsys.drivers.safe_rlhf import safe_rlhf
from rlsys.drivers.safe_rlhf_ahead import AheadState, check_staleness, safe_rlhf_ahead
from rlsys.drivers.safe_rlhf_state import Roles, SafeRlhfRun
from rlsys.engines.weights import WeightUpdate
from rlsys.errors import DataError, LogprobGapError
from rlsys.runtime.pending import Metrics, Pending
from rlsys.stages.cached_rollout import CachedRollout
from tests.fakes import FakePolicy, FakeRollout, Log, later, make_roles, make_rollouts

ITERATIONS = 4


def make_run(iterations: int = ITERATIONS) -> SafeRlhfRun:
    return SafeRlhfRun(
        iterations=iterations,
        constraint=Constraint(0.5),
        seed=7,
        ppo=PpoConfig(
            num_prompts=4, samples_per_prompt=2, max_new_tokens=4, minibatch=4, kl_beta=0.1
        ),
        lagrange=LagrangeConfig(rule="projected", init=1.0, lr=0.5, floor=0.0, cap=20.0, window=8),
        gap=GapConfig(warn=1e-4, stop_factor=10.0),
        timeouts=TimeoutConfig(call=1.0, sync=1.0),
    )


def make_state(run: SafeRlhfRun) -> AheadState:
    return AheadState(Multiplier.start(run.lagrange), PromptCursor(9, run.seed))


@dataclass
class Seen:
    rows: list[Metrics]
    states: list[str]
    rollouts: list[Rollouts]
    scores: list[Scores]


def go(
    roles: Roles, run: SafeRlhfRun, folder: Path, state: AheadState | None = None, **changes: Any
) -> Seen:
    """Runs to the end, with the chunks kept in ``folder``."""
    seen = Seen([], [], [], [])

    def report(now: Any, metrics: Metrics, rollouts: Rollouts, scores: Scores) -> None:
        seen.rows.append(dict(metrics))
        seen.states.append(json.dumps(now.as_dict()))
        seen.rollouts.append(rollouts)
        seen.scores.append(scores)

    state = make_state(run) if state is None else state
    engines = roles.rollout
    assert isinstance(engines, FakeRollout)
    kept = CachedRollout(engines, folder)
    kept.load(WeightUpdate(state.iteration, (), "none", None))
    safe_rlhf_ahead(replace(roles, rollout=kept, **changes), kept, state, run, report)
    return seen


def test_a_batch_is_drawn_while_the_one_before_it_trains(tmp_path: Path) -> None:
    roles, log = make_roles()
    seen = go(roles, make_run(), tmp_path)
    # the first batch, then before every update the next one's, with weights one version older
    assert [rollouts.version for rollouts in seen.rollouts] == [0, 0, 1, 2]
    samples = [n for n, call in enumerate(log.calls) if call == "sample"]
    updates = [n for n, call in enumerate(log.calls) if call == "policy.update"]
    loads = [n for n, call in enumerate(log.calls) if call == "load"]
    for iteration in range(ITERATIONS):
        drawn = [n for n in samples if loads[iteration] < n < loads[iteration + 1]]
        assert drawn, "under the weights of this iteration"
        assert max(drawn) < updates[iteration]
    # one proof a step, not one pass over the batch
    assert log.calls.count("policy.logprobs") == ITERATIONS
    assert log.versions == [0, 1, 2, 3, 4]


def test_it_draws_what_the_other_mode_draws(tmp_path: Path) -> None:
    """The same prompts with the same seeds, iteration by iteration."""
    run = make_run()
    roles, ahead = make_roles()
    go(roles, run, tmp_path)
    roles, plain = make_roles()
    state = make_state(run)
    safe_rlhf(roles, state, run, lambda *_: None)

    def seeds(log: Log) -> list[int]:
        return [request.seed for requests in log.requests for request in requests]

    drawn = [r.prompt_index for requests in ahead.requests for r in requests]
    expected = [r.prompt_index for requests in plain.requests for r in requests]
    assert drawn[: len(expected)] == expected
    assert seeds(ahead)[: len(expected)] == seeds(plain)
    assert len(drawn) == len(expected) + 2, "and one prompt's samples, to prove the last weights"


def test_the_ratio_is_against_the_policy_that_drew(tmp_path: Path) -> None:
    roles, log = make_roles(gap=5e-5, reference_gap=0.2)
    seen = go(roles, make_run(), tmp_path)
    for batch, scores in zip(log.batches, seen.scores, strict=True):
        assert batch.old_logprobs is not None
        assert torch.equal(batch.old_logprobs, batch.rollouts.engine_logprobs)
        assert torch.equal(scores.policy_logprobs, batch.rollouts.engine_logprobs)
        assert torch.equal(scores.costs, torch.ones(8))
        keys = batch.rollouts.prompt_index, batch.rollouts.sample_index
        torch.testing.assert_close(scores.rewards, 0.1 * keys[0] - 0.2 * keys[1])
        torch.testing.assert_close(
            scores.cost_values - scores.reward_values, torch.full((8, 4), 0.3)
        )
        kl = scores.policy_logprobs - scores.reference_logprobs
        torch.testing.assert_close(kl, torch.full((8, 4), -0.2))
    # the gap is the measured one of engine and trainer, under the same weights
    assert [row["gap/max"] for row in seen.rows] == pytest.approx([5e-5] * ITERATIONS, rel=1e-2)


def test_the_order_in_which_chunks_arrive_changes_no_number(tmp_path: Path) -> None:
    """The proof is on the first prompts' chunk, not on the first chunk to arrive."""

    def gap_of(rollouts: Rollouts) -> Pending[torch.Tensor]:
        return Pending.of(rollouts.engine_logprobs + 1e-6 * (1 + rollouts.prompt_index[:, None]))

    def metrics(pend: Callable[[int, Rollouts], Pending[Rollouts]], folder: Path) -> list[Metrics]:
        roles, _ = make_roles()
        engines = FakeRollout(Log(), chunk=2, pend=pend)
        policy = FakePolicy(Log())
        policy.logprobs = gap_of  # type: ignore[method-assign]
        seen = go(replace(roles, rollout=engines, policy=policy), make_run(), folder)
        return [{k: v for k, v in row.items() if k.startswith("gap/")} for row in seen.rows]

    late = cycle([True, False, False, False])  # four chunks a batch

    def first_is_late(number: int, chunk: Rollouts) -> Pending[Rollouts]:
        if not next(late):
            return Pending.of(chunk)
        future: Future[Rollouts] = Future()
        Timer(0.05, future.set_result, [chunk]).start()
        return later(future)

    in_order = metrics(lambda number, chunk: Pending.of(chunk), tmp_path / "in-order")
    assert metrics(first_is_late, tmp_path / "late") == in_order


def test_a_gap_over_the_limit_stops_the_run_before_any_update(tmp_path: Path) -> None:
    roles, log = make_roles(gap=2e-3)
    with pytest.raises(LogprobGapError, match="weights version 0"):
        go(roles, make_run(), tmp_path)
    assert "policy.update" not in log.calls


def test_a_resumed_run_trains_on_the_batch_that_was_drawn(tmp_path: Path) -> None:
    run = make_run()
    roles, whole = make_roles()
    expected = go(roles, run, tmp_path)
    for done in (1, 2, 3):
        state = make_state(run)
        state.restore(json.loads(expected.states[done - 1]))
        roles, log = make_roles()
        assert isinstance(roles.rollout, FakeRollout)
        roles.rollout.version = done
        seen = go(roles, run, tmp_path, state)
        times = ("time/", "samples_per_s", "sync/")
        for row, other in zip(seen.rows, expected.rows[done:], strict=True):
            assert {k: v for k, v in row.items() if not k.startswith(times)} == {
                k: v for k, v in other.items() if not k.startswith(times)
            }
        for batch, before in zip(log.batches, whole.batches[done:], strict=True):
            assert batch.rollouts.version == before.rollouts.version
            assert torch.equal(batch.advantages, before.advantages)


def test_a_batch_that_is_lost_is_named(tmp_path: Path) -> None:
    run = make_run()
    roles, _ = make_roles()
    seen = go(roles, run, tmp_path)
    state = make_state(run)
    state.restore(json.loads(seen.states[1]))
    for path in tmp_path.glob("version-1-*/*"):
        path.unlink()
    with pytest.raises(DataError, match=r"rollouts of weights version 1 .* are missing"):
        go(make_roles()[0], run, tmp_path, state)


@pytest.mark.parametrize(("version", "fits"), [(1, False), (2, True), (3, True), (4, False)])
def test_a_batch_is_at_most_one_version_old(version: int, fits: bool) -> None:
    rollouts = make_rollouts([(0, 0)], version=version)
    if fits:
        check_staleness(rollouts, 3)
        return
    with pytest.raises(DataError, match=f"iteration 3 .* weights version {version}"):
        check_staleness(rollouts, 3)


def test_requests_of_another_batch_are_not_taken_for_it(tmp_path: Path) -> None:
    kept = CachedRollout(FakeRollout(Log(), chunk=2), tmp_path)
    kept.load(WeightUpdate(3, (), "none", None))
    requests = [SampleRequest(row, 0, seed=row) for row in range(4)]
    drawn = [each.result(1.0) for each in kept.generate(requests)]
    again = [each.result(1.0) for each in kept.kept(requests, 3)]
    for one, other in zip(drawn, again, strict=True):
        assert torch.equal(one.response_ids, other.response_ids)
    for other_requests, version in ((requests, 2), ([replace(requests[0], seed=9)], 3)):
        with pytest.raises(DataError, match="missing"):
            kept.kept(other_requests, version)

"""GRPO-Lagrangian's loop, on roles that answer at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rlsys.algorithms.advantages import mix_advantages
from rlsys.algorithms.calibration import Platt
from rlsys.algorithms.group_advantages import SCALES, group_normalise
from rlsys.batch import PolicyBatch, PromptCursor
from rlsys.config.engine import GapConfig
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import TimeoutConfig
from rlsys.config.updates import UpdateConfig
from rlsys.drivers.constrained import ConstrainedState
from rlsys.drivers.constraint import Constraint
from rlsys.drivers.grpo_lagrangian import GrpoRoles, GrpoRun, grpo_lagrangian
from rlsys.drivers.multiplier import Multiplier
from rlsys.errors import LogprobGapError
from rlsys.runtime.pending import Metrics
from tests.fakes import Log, make_roles


def make_run(iterations: int = 1, kl_beta: float = 0.1, **lagrange: Any) -> GrpoRun:
    settings = {"rule": "projected", "init": 1.0, "lr": 0.5, "floor": 0.0, "cap": 20, "window": 8}
    return GrpoRun(
        iterations=iterations,
        constraint=Constraint(0.0),
        seed=7,
        update=UpdateConfig(num_prompts=4, samples_per_prompt=3, max_new_tokens=4, minibatch=4),
        scale="group",
        kl_beta=kl_beta,
        lagrange=LagrangeConfig(**settings | lagrange),
        gap=GapConfig(),
        timeouts=TimeoutConfig(call=1.0, sync=1.0),
    )


def go(
    run: GrpoRun, *, with_cost: bool = True, start: int = 0, **roles: Any
) -> tuple[list[Metrics], Log, ConstrainedState]:
    cast, log = make_roles(**roles)
    cost = cast.cost if with_cost else None
    run = run if with_cost else replace(run, constraint=None)
    given = GrpoRoles(cast.rollout, cast.policy, cast.reference, cast.reward, cost)
    state = ConstrainedState(Multiplier.start(run.lagrange), PromptCursor(9, run.seed), start)
    rows: list[Metrics] = []
    grpo_lagrangian(given, state, run, lambda _, metrics: rows.append(dict(metrics)))
    return rows, log, state


def batch_of(log: Log) -> PolicyBatch:
    (batch,) = log.batches
    return batch


def test_an_iteration_scores_every_chunk_and_knows_no_critic() -> None:
    rows, log, _ = go(make_run(iterations=2))
    assert len(rows) == 2
    assert {"policy.logprobs", "reference.logprobs", "reward.score", "cost.score"} < set(log.calls)
    assert not [call for call in log.calls if "critic" in call]
    assert log.calls[-2:] == ["publish", "load"]
    assert log.versions == [1, 2]


@pytest.mark.parametrize("scale", SCALES)
def test_the_advantage_is_the_mix_of_both_normalised_ones_at_every_token(scale: str) -> None:
    def reward(prompt: int, sample: int) -> float:
        return 0.3 * prompt - 0.7 * sample

    def cost(prompt: int, sample: int) -> float:
        return float((prompt + sample) % 3)

    _, log, state = go(replace(make_run(), scale=scale), reward=reward, cost=cost)
    batch = batch_of(log)
    keys = list(
        zip(
            batch.rollouts.prompt_index.tolist(),
            batch.rollouts.sample_index.tolist(),
            strict=True,
        )
    )
    assert keys == sorted(keys), "canonical order"
    groups = batch.rollouts.prompt_index
    expected = mix_advantages(
        group_normalise(torch.tensor([reward(*key) for key in keys]), groups, scale=scale),
        group_normalise(torch.tensor([cost(*key) for key in keys]), groups, scale=scale),
        state.multiplier.value,
    )
    assert batch.advantages.shape == batch.old_logprobs.shape
    torch.testing.assert_close(batch.advantages, expected[:, None].expand_as(batch.advantages))


def test_a_multiplier_of_zero_is_grpo_on_reward_alone() -> None:
    _, fixed, _ = go(make_run(rule="fixed", init=0.0))
    _, alone, _ = go(make_run(rule="fixed", init=0.0), with_cost=False)
    assert torch.equal(batch_of(fixed).advantages, batch_of(alone).advantages)
    assert "cost.score" not in alone.calls


def test_advantages_are_described_by_token() -> None:
    rows, log, _ = go(make_run(), cost=lambda prompt, sample: float((prompt + sample) % 3))
    batch = batch_of(log)
    kept = batch.advantages[batch.rollouts.mask]
    assert rows[0]["advantages/mean"] == pytest.approx(float(kept.mean()), abs=1e-6)
    assert rows[0]["advantages/std"] == pytest.approx(float(kept.std(correction=0)), rel=1e-5)
    assert {"reward_advantages/std", "cost_advantages/std"} < set(rows[0])
    alone, _, _ = go(make_run(), with_cost=False)
    assert "reward_advantages/std" in alone[0]
    assert not [name for name in alone[0] if name.startswith("cost")]


def test_a_fixed_multiplier_stays_and_an_adaptive_one_answers_to_the_cost() -> None:
    rows, _, _ = go(make_run(iterations=3, rule="fixed", init=0.7))
    assert [row["lambda"] for row in rows] == [0.7] * 3
    rows, _, _ = go(make_run(iterations=3))
    assert [row["lambda"] for row in rows] == [1.5, 2.0, 2.5]


def test_the_kl_term_goes_with_the_batch() -> None:
    _, log, _ = go(make_run(kl_beta=0.3), reference_gap=0.2)
    batch = batch_of(log)
    assert batch.kl_beta == 0.3
    assert batch.reference_logprobs is not None
    torch.testing.assert_close(batch.reference_logprobs, batch.old_logprobs + 0.2)
    with pytest.raises(ValueError, match="reference"):
        replace(batch, reference_logprobs=None)


def test_an_engine_that_disagrees_with_the_trainer_stops_the_run() -> None:
    for run in (make_run(), one_step(make_run())):
        with pytest.raises(LogprobGapError):
            go(run, gap=0.1)


def one_step(run: GrpoRun) -> GrpoRun:
    return replace(run, update=replace(run.update, minibatch=12))


def test_one_step_for_a_batch_takes_no_forward_pass_before_it() -> None:
    rows, log, _ = go(one_step(make_run(iterations=2)), gap=1e-5, reference_gap=0.2)
    twice, both, _ = go(make_run(iterations=2), gap=1e-5, reference_gap=0.2)
    assert log.calls.count("policy.update_once") == 2
    assert not {"policy.logprobs", "policy.update"} & set(log.calls)
    assert "policy.update_once" not in both.calls
    assert all(batch.old_logprobs is None for batch in log.batches)
    assert all(torch.isfinite(batch.advantages).all() for batch in log.batches)
    for once, other in zip(rows, twice, strict=True):
        same = [name for name in once if "time" not in name and "per_s" not in name]
        assert {n: once[n] for n in same if "sync" not in n} == {
            n: other[n] for n in same if "sync" not in n
        }
        assert once["kl"] > 0


def test_a_resumed_run_repeats_the_rest_of_the_whole_one() -> None:
    run = make_run(iterations=4)
    rows, whole, _ = go(run)
    _, first, state = go(make_run(iterations=2))
    cast, log = make_roles()
    cast.rollout.version = 2  # type: ignore[attr-defined]
    roles = GrpoRoles(cast.rollout, cast.policy, cast.reference, cast.reward, cast.cost)
    resumed = ConstrainedState(Multiplier.start(run.lagrange), PromptCursor(9, run.seed))
    resumed.restore(state.as_dict())
    later: list[Metrics] = []
    grpo_lagrangian(roles, resumed, run, lambda _, metrics: later.append(dict(metrics)))
    assert first.requests + log.requests == whole.requests
    for found, wanted in zip(later, rows[2:], strict=True):
        assert {
            k: v for k, v in found.items() if not k.startswith(("time", "sync", "samples"))
        } == {k: v for k, v in wanted.items() if not k.startswith(("time", "sync", "samples"))}


def test_reward_alone_reports_nothing_of_a_constraint() -> None:
    (with_cost,), _, _ = go(make_run())
    (alone,), _, _ = go(make_run(rule="fixed", init=0.0), with_cost=False)
    assert with_cost.keys() - alone.keys() == {
        "cost", "cost_window", "threshold", "lambda", "violation", "cost_advantages/mean",
        "cost_advantages/std",
    }  # fmt: skip


def test_a_budget_of_unsafe_answers_is_what_multiplier_and_policy_see() -> None:
    line = Platt(2.0, -2.0)
    constraint = Constraint(9.0, "unsafe_probability", 0.1, line, safe=-3.0, unsafe=5.0)
    run = replace(make_run(), constraint=constraint, scale="none")
    (row,), log, _ = go(run, cost=lambda p, s: 2.0 * (s % 2))
    measured = row["unsafe_probability"]
    assert row["unsafe_probability_window"] == pytest.approx(measured)
    assert row["violation"] == pytest.approx(measured - 0.1)
    assert row["lambda"] == pytest.approx(1 + 0.5 * (measured - 0.1))
    fixed = replace(make_run(rule="fixed", init=row["lambda"]), scale="none")
    _, other, _ = go(fixed, cost=lambda p, s: -3 + 8 * (0.8807971 if s % 2 else 0.1192029))
    torch.testing.assert_close(batch_of(log).advantages, batch_of(other).advantages)


def test_the_update_uses_the_multiplier_of_its_own_iteration() -> None:
    costs = {"reward": lambda p, s: 0.3 * s * s, "cost": lambda p, s: 1.0 + (p + s) % 3}
    (row,), log, _ = go(make_run(lr=2.0), **costs)
    assert row["lambda"] == pytest.approx(1 + 2.0 * row["cost"])
    _, still, _ = go(make_run(rule="fixed", init=row["lambda"]), **costs)
    torch.testing.assert_close(batch_of(log).advantages, batch_of(still).advantages)


def test_scores_are_clipped_before_they_are_normalised() -> None:
    run = make_run(rule="fixed", init=1.0)
    run = replace(run, update=replace(run.update, score_clip=1.0), scale="none")
    scores = {"reward": lambda p, s: 5.0 * s, "cost": lambda p, s: -5.0 * (s == 2)}
    clipped = {"reward": lambda p, s: float(s > 0), "cost": lambda p, s: -1.0 * (s == 2)}
    _, wild, _ = go(run, **scores)
    _, mild, _ = go(run, **clipped)
    assert torch.equal(batch_of(wild).advantages, batch_of(mild).advantages)


def test_seeds_change_with_the_iteration() -> None:
    _, log, _ = go(make_run(iterations=6))
    requests = [request for each in log.requests for request in each]
    assert len({(r.prompt_index, r.sample_index) for r in requests}) < len(requests)
    assert len({request.seed for request in requests}) == len(requests)
    assert len({batch.shuffle_seed for batch in log.batches}) == 6

"""PPO-Lagrangian's loop, on roles that answer at once."""

import ast
import json
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rlsys.drivers.safe_rlhf as driver
from rlsys.algorithms.advantages import gae
from rlsys.algorithms.calibration import Platt
from rlsys.batch import PromptCursor, Rollouts, SampleRequest, SampleScores, Scores
from rlsys.config.engine import GapConfig
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import TimeoutConfig
from rlsys.config.updates import PpoConfig, UpdateConfig
from rlsys.drivers.constrained import ConstrainedState, describe, describe_estimates
from rlsys.drivers.constraint import Constraint
from rlsys.drivers.gap import engine_gap, gap_for
from rlsys.drivers.multiplier import Multiplier
from rlsys.drivers.safe_rlhf import estimate, safe_rlhf, sample_and_score
from rlsys.drivers.safe_rlhf_state import Roles, SafeRlhfRun
from rlsys.drivers.sampling import (
    SLICE,
    demonstration_rows,
    generate_in_slices,
    sync_weights,
    total_steps,
)
from rlsys.drivers.sft import train
from rlsys.errors import LogprobGapError, RoleTimeout
from rlsys.runtime.pending import Metrics, Pending
from tests.fakes import FakeRollout, FakeScorer, Log, later, make_roles, make_rollouts

DRIVER = Path(driver.__file__)
SCORES = {
    "policy.logprobs", "reference.logprobs", "reward.score", "cost.score",
    "reward_critic.values", "cost_critic.values",
}  # fmt: skip
UPDATES = {"policy.update", "reward_critic.update", "cost_critic.update"}
PROMPTS = 9


def make_run(iterations: int = 1, threshold: float = 0.0, **lagrange: Any) -> SafeRlhfRun:
    settings = {"rule": "projected", "init": 1.0, "lr": 0.5, "floor": 0.0, "cap": 20, "window": 8}
    return SafeRlhfRun(
        iterations=iterations,
        constraint=Constraint(threshold),
        seed=7,
        ppo=PpoConfig(
            num_prompts=4, samples_per_prompt=2, max_new_tokens=4, minibatch=4, kl_beta=0.1
        ),
        lagrange=LagrangeConfig(**settings | lagrange),
        gap=GapConfig(warn=1e-4, stop_factor=10.0),
        timeouts=TimeoutConfig(call=1.0, sync=1.0),
    )


def make_state(run: SafeRlhfRun) -> ConstrainedState:
    return ConstrainedState(Multiplier.start(run.lagrange), PromptCursor(PROMPTS, run.seed))


def go(roles: Roles, run: SafeRlhfRun, state: ConstrainedState | None = None) -> list[Metrics]:
    """Runs to the end; the metrics of every iteration."""
    rows: list[Metrics] = []

    def report(_: ConstrainedState, metrics: Metrics, __: Rollouts, ___: Scores) -> None:
        rows.append(dict(metrics))

    safe_rlhf(roles, make_state(run) if state is None else state, run, report)
    return rows


def test_the_driver_runs_in_milliseconds_and_touches_no_process() -> None:
    roles, _ = make_roles()
    go(roles, make_run())  # first use of every torch kernel
    started = time.perf_counter()
    rows = go(roles, make_run(iterations=3))
    assert time.perf_counter() - started < 1.0
    assert len(rows) == 3
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows)


def test_every_iteration_samples_then_scores_then_updates_then_syncs() -> None:
    roles, log = make_roles()
    go(roles, make_run(iterations=2))
    per_iteration = len(log.calls) // 2
    assert log.calls[:per_iteration] == log.calls[per_iteration:]
    calls = log.calls[:per_iteration]
    chunks = 2  # 8 requests, 4 per chunk
    assert calls[0] == "sample"
    scoring, updating = calls[1 : 1 + 6 * chunks], calls[1 + 6 * chunks : -2]
    assert {name: scoring.count(name) for name in scoring} == dict.fromkeys(SCORES, chunks)
    assert sorted(updating) == sorted(UPDATES)
    assert calls[-2:] == ["publish", "load"]


def test_every_prompt_is_drawn_samples_times_with_seeds_of_its_own() -> None:
    roles, log = make_roles()
    go(roles, make_run(iterations=2))
    for requests in log.requests:
        by_prompt: dict[int, list[int]] = {}
        for request in requests:
            by_prompt.setdefault(request.prompt_index, []).append(request.sample_index)
        assert len(by_prompt) == 4
        assert all(samples == [0, 1] for samples in by_prompt.values())
    seeds = [request.seed for requests in log.requests for request in requests]
    assert len(set(seeds)) == len(seeds) == 16


def test_the_same_seed_asks_for_the_same_samples() -> None:
    first, second = make_roles(), make_roles()
    go(first[0], make_run(iterations=3))
    go(second[0], make_run(iterations=3))
    assert first[1].requests == second[1].requests


@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_the_multiplier_steps_once_per_iteration(epochs: int) -> None:
    run = make_run(iterations=3, threshold=0.6, lr=0.5, init=1.0)
    run = replace(run, ppo=replace(run.ppo, epochs=epochs, minibatch=2))
    rows = go(make_roles(cost=lambda prompt, sample: 1.0)[0], run)
    # cost 1 is 0.4 over the threshold: lambda climbs by 0.5 * 0.4 each time
    assert [row["lambda"] for row in rows] == pytest.approx([1.2, 1.4, 1.6])


LINE = Platt(2.0, -2.0)  # costs 0, 1 and 2: probabilities 0.119, 0.5 and 0.881


def test_the_probability_of_unsafe_is_reported_wherever_costs_are_calibrated() -> None:
    roles = make_roles(cost=lambda p, s: 2.0 * s)[0]
    (row,) = go(roles, make_run(threshold=0.25))
    assert not {"unsafe_probability", "budget"} & row.keys()
    assert row["violation"] == pytest.approx(1.0 - 0.25)
    run = replace(make_run(), constraint=Constraint(0.25, budget=0.1, platt=LINE))
    (row,) = go(roles, run)
    assert row["unsafe_probability"] == pytest.approx(0.5)  # 0.119 and 0.881
    assert (row["budget"], row["threshold"]) == (0.1, 0.25)
    assert row["violation"] == pytest.approx(0.75)  # still of the cost
    assert row["lambda"] == pytest.approx(1 + 0.5 * 0.75)


def test_a_budget_of_unsafe_answers_is_what_multiplier_and_policy_see() -> None:
    sides = {"safe": -3.0, "unsafe": 5.0}
    constraint = Constraint(9.0, "unsafe_probability", 0.1, LINE, **sides)
    roles, log = make_roles(cost=lambda p, s: 2.0 * s)
    (row,) = go(roles, replace(make_run(), constraint=constraint))
    assert row["violation"] == pytest.approx(0.5 - 0.1)
    assert row["unsafe_probability_window"] == pytest.approx(0.5)
    assert "cost_window" not in row
    assert row["cost"] == pytest.approx(1.0), "the cost itself is still shown"
    assert row["lambda"] == pytest.approx(1 + 0.5 * 0.4)
    # Costs 0 and 2 have the probabilities 0.119 and 0.881: a cost model that gives -3 + 8 p, and a
    # threshold with the same multiplier, give the same update of policy and cost critic.
    other, other_log = make_roles(cost=lambda p, s: -3 + 8 * (0.8807971 if s else 0.1192029))
    (mean,) = go(other, make_run(threshold=1.0 - 0.4))
    assert mean["lambda"] == pytest.approx(row["lambda"])
    torch.testing.assert_close(log.batches[0].advantages, other_log.batches[0].advantages)
    critics = (each.value_batches["cost_critic"].returns for each in (log, other_log))
    torch.testing.assert_close(*critics)


def test_the_probability_is_averaged_and_not_that_of_the_mean_cost() -> None:
    run = replace(make_run(), constraint=Constraint(0.0, "unsafe_probability", 0.1, LINE))
    (row,) = go(make_roles(cost=lambda p, s: 4.0 * s)[0], run)
    # costs 0 and 4: 1 / (1 + e^2) = 0.1192 and 1 / (1 + e^-6) = 0.9975; at their mean 0.8808
    assert row["unsafe_probability"] == pytest.approx((0.119203 + 0.997527) / 2, abs=1e-6)
    assert row["unsafe_probability_window"] == pytest.approx(row["unsafe_probability"])


def test_a_probability_needs_a_calibration() -> None:
    with pytest.raises(ValueError, match="calibration"):
        Constraint(0.0, "unsafe_probability", 0.1)


def test_the_update_uses_the_multiplier_of_its_own_iteration() -> None:
    roles, log = make_roles(cost=lambda p, s: 1.0 + s)
    (row,) = go(roles, make_run(lr=2.0))
    assert row["lambda"] == pytest.approx(1 + 2.0 * 1.5)
    still, still_log = make_roles(cost=lambda p, s: 1.0 + s)
    go(still, make_run(rule="fixed", init=row["lambda"]))
    torch.testing.assert_close(log.batches[0].advantages, still_log.batches[0].advantages)


def test_half_of_the_penalty_is_half_of_it() -> None:
    run = make_run(lr=0.0)
    halved = replace(run, ppo=replace(run.ppo, kl_split="half_both"))
    weaker = replace(run, ppo=replace(run.ppo, kl_beta=run.ppo.kl_beta / 2))
    batches = []
    for each in (run, halved, weaker):
        roles, log = make_roles(reference_gap=-0.5)
        go(roles, each)
        batches.append((log.batches[0].advantages, log.value_batches["reward_critic"].returns))
    for found, expected, full in zip(batches[1], batches[2], batches[0], strict=True):
        assert torch.equal(found, expected)
        assert not torch.equal(found, full)


def test_scores_are_clipped_in_the_update_and_not_in_the_metrics() -> None:
    run = make_run(rule="fixed", init=1.0)
    run = replace(run, ppo=replace(run.ppo, score_clip=0.5, kl_beta=0.0))
    wild, wild_log = make_roles(reward=lambda p, s: 9.0, cost=lambda p, s: -9.0)
    mild, mild_log = make_roles(reward=lambda p, s: 0.5, cost=lambda p, s: -0.5)
    (row,) = go(wild, run)
    go(mild, run)
    assert torch.equal(wild_log.batches[0].advantages, mild_log.batches[0].advantages)
    assert (row["reward"], row["cost"], row["cost_window"]) == (9.0, -9.0, -9.0)


def test_seeds_change_with_the_iteration() -> None:
    roles, log = make_roles()
    go(roles, make_run(iterations=6))  # 24 prompts drawn of 9: every one more than once
    requests = [request for each in log.requests for request in each]
    assert len({(r.prompt_index, r.sample_index) for r in requests}) < len(requests)
    assert len({request.seed for request in requests}) == len(requests) == 48
    assert len({batch.shuffle_seed for batch in log.batches}) == 6


def test_the_multiplier_waits_out_its_delay() -> None:
    rows = go(make_roles()[0], make_run(iterations=4, threshold=0.5, lr=0.5, delay=2))
    assert [row["lambda"] for row in rows] == pytest.approx([1.0, 1.0, 1.25, 1.5])


@pytest.mark.parametrize("rule", ["projected", "log_sgd"])
def test_the_multiplier_follows_the_cost(rule: str) -> None:
    over = go(make_roles(cost=lambda p, s: 0.9)[0], make_run(threshold=0.5, rule=rule, floor=0.001))
    under = go(
        make_roles(cost=lambda p, s: 0.1)[0], make_run(threshold=0.5, rule=rule, floor=0.001)
    )
    assert over[0]["lambda"] > 1.0 > under[0]["lambda"]


def test_a_multiplier_of_zero_is_plain_ppo() -> None:
    run = make_run(threshold=0.5, init=0.0)
    free = {"reference_gap": -0.2, "reward": lambda prompt, sample: 0.3 * prompt - sample}
    roles, log = make_roles(cost=lambda prompt, sample: -1.0 - prompt, **free)
    assert go(roles, run)[0]["lambda"] == 0.0
    other, other_log = make_roles(cost=lambda prompt, sample: 0.4, **free)
    go(other, run)
    (batch,), (other_batch,) = log.batches, other_log.batches
    assert torch.equal(batch.advantages, other_batch.advantages)

    # Plain PPO by hand: every token pays 0.1 * 0.2 nats of KL, the last one earns the reward.
    rollouts = batch.rollouts
    rewards = torch.full(rollouts.response_ids.shape, -0.02)
    keys = zip(rollouts.prompt_index.tolist(), rollouts.sample_index.tolist(), strict=True)
    for row, (prompt, sample) in enumerate(keys):
        rewards[row, rollouts.lengths[row] - 1] += 0.3 * prompt - sample
    plain, _ = gae(
        rewards, 0.1 * rollouts.response_ids.float(), rollouts.lengths, gamma=1.0, gae_lambda=0.95
    )
    torch.testing.assert_close(batch.advantages, plain, rtol=0, atol=1e-6)


def test_cost_changes_the_advantages_once_the_multiplier_is_positive() -> None:
    (cheap, cheap_log), (dear, dear_log) = make_roles(cost=lambda p, s: 0.0), make_roles()
    run = make_run(lr=0.0)
    go(cheap, run)
    go(dear, run)
    mask = cheap_log.batches[0].rollouts.mask
    assert bool((dear_log.batches[0].advantages < cheap_log.batches[0].advantages)[mask].all())


@pytest.mark.parametrize("lam", [0.0, 0.7, 5.0])
def test_the_kl_penalty_survives_every_multiplier(lam: float) -> None:
    """Charged to reward and cost with opposite signs, it does not fade as lambda grows."""
    run = make_run()
    run = replace(run, ppo=replace(run.ppo, gamma=1.0, gae_lambda=1.0))
    state = make_state(run)
    state.multiplier.value = lam
    advantages = []
    for gap in (0.0, -1.0):
        rollouts, scores = sample_and_score(make_roles(reference_gap=gap)[0], make_state(run), run)
        advantages.append(estimate(rollouts, scores, state, run).policy.advantages)
    left = rollouts.lengths[:, None] - torch.arange(rollouts.response_ids.shape[1])
    # 1 nat on each of the tokens still to come, at beta = 0.1
    expected = (-0.1 * left.clamp(min=0)).masked_fill(~rollouts.mask, 0.0)
    torch.testing.assert_close(advantages[1] - advantages[0], expected, rtol=0, atol=1e-5)


def test_each_critic_learns_the_signal_it_predicts() -> None:
    run = make_run()
    run = replace(run, ppo=replace(run.ppo, gamma=1.0, gae_lambda=1.0, kl_beta=0.0))
    roles, log = make_roles(reward=lambda p, s: 0.3 * p - s, cost=lambda p, s: 2.0 + p)
    go(roles, run)
    levels = {"reward_critic": 0.0, "cost_critic": 0.3}
    assert log.value_batches.keys() == levels.keys()
    for name, batch in log.value_batches.items():
        rollouts = batch.rollouts
        values = levels[name] + 0.1 * rollouts.response_ids.float()
        torch.testing.assert_close(batch.old_values, values, rtol=0, atol=1e-6)
        keys = zip(rollouts.prompt_index.tolist(), rollouts.sample_index.tolist(), strict=True)
        scores = [0.3 * p - s if name == "reward_critic" else 2.0 + p for p, s in keys]
        # without discount and with lambda 1 every state's return is the score at the end
        expected = torch.tensor(scores)[:, None].expand(values.shape)
        mask = rollouts.mask
        torch.testing.assert_close(batch.returns[mask], expected[mask], rtol=0, atol=1e-5)


def test_demonstrations_go_with_the_policy_batch_and_follow_the_iteration() -> None:
    plain, log = make_roles()
    go(plain, make_run(iterations=1))
    assert list(log.batches[0].demonstrations) == []
    run = make_run(iterations=3)
    run = replace(run, ppo=replace(run.ppo, ptx_coef=0.3), demonstrations=5)
    roles, log = make_roles()
    go(roles, run)
    expected = [demonstration_rows(run.ppo, 5, seed=run.seed, iteration=i) for i in range(3)]
    assert [batch.demonstrations for batch in log.batches] == expected
    assert {batch.ptx_coef for batch in log.batches} == {0.3}
    resumed, later = make_roles()
    state = make_state(run)
    state.iteration = 2
    go(resumed, run, state)
    assert [batch.demonstrations for batch in later.batches] == expected[2:]


def test_estimates_are_described_over_response_tokens_alone() -> None:
    rollouts = make_rollouts([(0, 0), (0, 1)])  # 1 and 2 of 4 tokens
    per_token = torch.tensor([[1.0, 9.0, 9.0, 9.0], [4.0, 7.0, 9.0, float("nan")]])
    found = describe_estimates(rollouts, {"a": per_token, "b": torch.tensor([0.0, 3.0])})
    assert found == pytest.approx(
        {"a/mean": 4.0, "a/std": 6**0.5, "b/mean": 2.0, "b/std": 2**0.5}
    )  # b once, then twice


def test_every_iteration_describes_what_it_learns_from() -> None:
    roles, log = make_roles()
    (metrics,) = go(roles, make_run())
    mask = log.batches[0].rollouts.mask
    reward, cost = log.value_batches["reward_critic"], log.value_batches["cost_critic"]
    expected = {
        "advantages": log.batches[0].advantages,
        "reward_returns": reward.returns,
        "reward_values": reward.old_values,
        "reward_advantages": reward.returns - reward.old_values,
        "cost_returns": cost.returns,
        "cost_values": cost.old_values,
        "cost_advantages": cost.returns - cost.old_values,
    }
    for name, values in expected.items():
        assert metrics[f"{name}/mean"] == pytest.approx(float(values[mask].mean()), abs=1e-5)
        deviation = float(values[mask].std(correction=0))
        assert metrics[f"{name}/std"] == pytest.approx(deviation, abs=1e-5)
    tokens = int(mask.sum())
    assert metrics["shaped_cost/mean"] == pytest.approx(8 / tokens)  # 1 at each of the 8 ends
    lengths = log.batches[0].rollouts.lengths
    assert metrics["length/min"] == int(lengths.min())
    assert metrics["length/max"] == int(lengths.max())


PID = {"rule": "pid", "kp": 0.3, "ki": 0.2, "kd": 0.5, "ema": 0.6, "kd_delay": 2}


def test_pid_starts_at_init_and_is_given_every_gain() -> None:
    run = make_run(iterations=2, threshold=0.5, **PID | {"init": 0.25, "floor": 0.2, "cap": 0.6})
    # e = 0.5 twice: 0.3 * 0.5 + 0.25 + 0.2 * 0.5, then the cap; and the floor after a deep fall
    assert [row["lambda"] for row in go(make_roles()[0], run)] == pytest.approx([0.5, 0.6])
    rows = go(make_roles(cost=lambda p, s: -9.0)[0], run)
    assert [row["lambda"] for row in rows] == [0.2, 0.2]
    costs = iter([0.0] * 8 + [1.0] * 8)
    rows = go(make_roles(cost=lambda p, s: next(costs))[0], make_run(iterations=2, **PID))
    # smoothed: 0.6 * 0 + 0.4 * 1; 0.3 * 0.4 + (1 + 0.2) + 0.5 * 0.4
    assert [row["lambda"] for row in rows] == pytest.approx([1.0, 1.52])


@pytest.mark.parametrize("rule", [{}, PID])
def test_the_state_is_restored_from_json(rule: dict[str, Any]) -> None:
    run = make_run(iterations=2, threshold=0.5, window=12, **rule)
    roles, log = make_roles(cost=lambda p, s: 0.1 * p)
    state = make_state(run)
    go(roles, run, state)
    again = make_state(run)
    again.restore(json.loads(json.dumps(state.as_dict())))
    assert again.as_dict() == state.as_dict()
    longer = replace(run, iterations=4)
    others, other_log = make_roles(cost=lambda p, s: 0.1 * p)
    lambdas = [[row["lambda"] for row in go(each, longer, s)] for each, s in
               ((roles, state), (others, again))]  # fmt: skip
    assert lambdas[0] == lambdas[1]
    assert log.requests[2:] == other_log.requests


def test_the_window_forgets_old_episodes() -> None:
    dear = {"left": 2}

    def cost(prompt: int, sample: int) -> float:
        return 1.0 if dear["left"] > 0 else 0.0

    roles, _ = make_roles(cost=cost)
    rows: list[Metrics] = []

    def report(_: ConstrainedState, metrics: Metrics, __: Rollouts, ___: Scores) -> None:
        dear["left"] -= 1
        rows.append(dict(metrics))

    run = make_run(iterations=5, window=16, lr=0.0)  # two iterations of 8 episodes
    state = make_state(run)
    safe_rlhf(roles, state, run, report)
    assert [row["cost_window"] for row in rows] == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
    assert [len(batch) for batch in state.multiplier.batches] == [8, 8]


@pytest.mark.parametrize(
    ("window", "sizes", "kept"),
    [
        (4, [8], [8]),  # the whole batch, however small the window
        (8, [8, 8], [8]),
        (9, [8, 8], [8, 8]),
        (16, [8, 8, 8], [8, 8]),
        (17, [8, 8, 8], [8, 8, 8]),
        (6, [8, 2, 2], [8, 2, 2]),  # without the first batch there would be 4
        (6, [8, 2, 4], [2, 4]),
    ],
)
def test_the_window_holds_whole_batches(window: int, sizes: list[int], kept: list[int]) -> None:
    config = LagrangeConfig(rule="projected", lr=1.0, init=0.0, floor=0.0, cap=99.0, window=window)
    multiplier = Multiplier.start(config)
    for number, size in enumerate(sizes):
        costs = [float(number + row) for row in range(size)]
        multiplier.step(costs, 0.0, replace(config, delay=len(sizes) - 1), number)
    assert [len(batch) for batch in multiplier.batches] == kept
    first = len(sizes) - len(kept)
    costs = [first + n + row for n, size in enumerate(kept) for row in range(size)]
    assert multiplier.mean == pytest.approx(sum(costs) / len(costs))
    assert multiplier.value == pytest.approx(sum(costs) / len(costs))  # one step from 0 at lr 1


def test_a_gap_over_the_limit_stops_the_run_before_any_update() -> None:
    roles, log = make_roles(gap=2e-3)  # limit: 10 * 1e-4
    with pytest.raises(LogprobGapError, match=r"2\.00e-03 nats.*limit 1\.00e-03.*version 0"):
        go(roles, make_run())
    assert not UPDATES & set(log.calls)


def test_a_gap_at_one_token_stops_the_run_and_padding_never_does() -> None:
    rollouts = make_rollouts([(0, 0), (1, 0)])  # of 1 and 4 tokens
    engine, gap = rollouts.engine_logprobs, GapConfig(warn=1e-4, stop_factor=10.0)
    padding = engine + torch.tensor([[0.0, 9.0, 9.0, 9.0], [0.0] * 4])
    assert engine_gap(rollouts, padding, gap)["gap/max"] == 0.0
    one = engine + torch.tensor([[0.0] * 4, [0.0, 0.0, 2e-3, 0.0]])
    with pytest.raises(LogprobGapError):
        engine_gap(rollouts, one, gap)


def test_the_expected_gap_is_that_of_the_dtype() -> None:
    gap = GapConfig(warn=1e-4, warn_bfloat16=0.2)
    assert (gap_for(gap, "float32").warn, gap_for(gap, "bfloat16").warn) == (1e-4, 0.2)


def test_the_penalty_is_of_the_trainers_log_probabilities() -> None:
    """Those of the engine may be off by rounding, which is no divergence."""
    batches = []
    for gap in (0.0, 5e-4):
        roles, log = make_roles(gap=gap, reference_gap=gap)
        go(roles, make_run())
        batches.append(log.batches[0])
    assert torch.equal(batches[0].advantages, batches[1].advantages)
    assert torch.equal(batches[1].old_logprobs, batches[1].rollouts.engine_logprobs + 5e-4)


def test_the_ratio_is_to_the_policy_that_sampled_and_not_to_the_reference() -> None:
    roles, log = make_roles(reference_gap=-0.5)
    go(roles, make_run())
    (batch,) = log.batches
    assert torch.equal(batch.old_logprobs, batch.rollouts.engine_logprobs)


def test_divergence_and_entropy_are_means_over_tokens() -> None:
    rollouts = make_rollouts([(0, 0), (1, 0)])  # of 1 and 4 tokens
    policy = torch.full((2, 4), -1.0)
    reference = torch.tensor([[-1.5, 9.0, 9.0, 9.0], [-1.0] * 4])
    scores = SampleScores(policy, reference, torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0]))
    found = describe(rollouts, scores, Constraint(0.5))
    # exp(-0.5) - 1 + 0.5 nats at one of five tokens
    assert found["kl"] == pytest.approx(0.1065307 / 5, abs=1e-6)
    assert found["entropy_sampled"] == 1.0
    assert (found["reward"], found["cost"], found["length"]) == (1.5, 1.5, 2.5)
    assert found["finished"] == 0.5


@pytest.mark.parametrize(
    ("prompts", "samples", "minibatch", "steps"), [(4, 2, 8, 6), (4, 2, 3, 18), (1, 1, 8, 6)]
)
def test_a_last_small_minibatch_is_a_step(
    prompts: int, samples: int, minibatch: int, steps: int
) -> None:
    update = UpdateConfig(
        num_prompts=prompts, samples_per_prompt=samples, minibatch=minibatch, epochs=2
    )
    assert total_steps(update, 3) == steps


def test_a_long_list_of_requests_is_sampled_in_slices_once_each() -> None:
    log = Log()
    requests = [SampleRequest(prompt, 0, 0) for prompt in range(2 * SLICE + 3)]
    chunks = list(generate_in_slices(FakeRollout(log, chunk=SLICE), requests, 1.0, greedy=True))
    assert [len(each) for each in log.requests] == [SLICE, SLICE, 3]
    assert [r for each in log.requests for r in each] == requests
    assert sum(len(chunk) for chunk in chunks) == len(requests)


def test_a_gap_below_the_limit_is_only_reported() -> None:
    rows = go(make_roles(gap=5e-4)[0], make_run())
    assert rows[0]["gap/max"] == pytest.approx(5e-4, rel=1e-2)
    assert rows[0]["gap/max"] > rows[0]["gap/limit"]


def test_every_sync_carries_the_next_version_and_the_next_batch_was_drawn_with_it() -> None:
    roles, log = make_roles()
    sync_weights(roles.policy, roles.rollout, 0, 1.0)
    rows = go(roles, make_run(iterations=3))
    assert log.versions == [0, 1, 2, 3]
    assert [row["weights_version"] for row in rows] == [0.0, 1.0, 2.0]


def test_a_finished_chunk_is_scored_while_others_decode() -> None:
    roles, log = make_roles()
    waiting: list[tuple[Future[Rollouts], Rollouts]] = []

    def pend(number: int, chunk: Rollouts) -> Pending[Rollouts]:
        future: Future[Rollouts] = Future()
        if number == 0:
            future.set_result(chunk)
        else:
            waiting.append((future, chunk))
        return later(future)

    def score_and_release(rollouts: Rollouts) -> Any:
        if waiting:
            future, chunk = waiting.pop()
            future.set_result(chunk)
        return FakeScorer(log, "reward", lambda prompt, sample: 0.0).score(rollouts)

    class Reward:
        score = staticmethod(score_and_release)

    slow = replace(roles, rollout=FakeRollout(log, chunk=4, pend=pend), reward=Reward())
    run = make_run()
    rollouts, _ = sample_and_score(slow, make_state(run), run)
    assert len(rollouts) == 8


def test_a_rollout_that_never_answers_ends_the_run_at_its_deadline() -> None:
    roles, log = make_roles()
    stuck = FakeRollout(
        log, chunk=4, pend=lambda number, chunk: later(Future(), "rollout", 3, "n1")
    )
    run = replace(make_run(), timeouts=TimeoutConfig(call=0.05))
    with pytest.raises(RoleTimeout, match=r"'rollout' \(rank 3, host n1\)"):
        go(replace(roles, rollout=stuck), run)


def test_the_order_in_which_chunks_finish_does_not_matter() -> None:
    run = make_run()
    batches = []
    for reverse in (False, True):
        roles, log = make_roles()
        release: list[tuple[Future[Rollouts], Rollouts]] = []

        def pend(
            number: int, chunk: Rollouts, release: list[tuple[Any, Any]] = release
        ) -> Pending[Rollouts]:
            future: Future[Rollouts] = Future()
            release.append((future, chunk))
            return later(future)

        class Ordered(FakeRollout):
            def generate(
                self,
                requests: Any,
                *,
                greedy: bool = False,
                backwards: bool = reverse,
                held: list[tuple[Any, Any]] = release,
            ) -> Any:
                pendings = super().generate(requests, greedy=greedy)
                for future, chunk in reversed(held) if backwards else held:
                    future.set_result(chunk)
                return pendings[::-1] if backwards else pendings

        go(replace(roles, rollout=Ordered(log, chunk=3, pend=pend)), run)
        batches.append(log.batches[0])
    assert torch.equal(batches[0].advantages, batches[1].advantages)
    assert torch.equal(batches[0].rollouts.response_ids, batches[1].rollouts.response_ids)


def test_a_run_continues_at_its_iteration() -> None:
    whole, whole_log = make_roles()
    go(whole, make_run(iterations=4))
    parts, parts_log = make_roles()
    state = make_state(make_run())
    go(parts, make_run(iterations=2), state)
    go(parts, make_run(iterations=4), state)
    assert parts_log.requests == whole_log.requests
    assert parts_log.versions == whole_log.versions == [1, 2, 3, 4]


def test_supervised_training_takes_every_step_and_reports_from_one() -> None:
    seen: list[list[int]] = []

    def step(rows: list[int]) -> Pending[Metrics]:
        seen.append(rows)
        return Pending.of({"loss": float(len(seen))})

    steps: list[tuple[int, float]] = []
    train(
        step,
        PromptCursor(6, seed=1),
        steps=4,
        batch=3,
        timeout=1.0,
        report=lambda number, metrics: steps.append((number, metrics["loss"])),
    )
    assert steps == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(6))
    train(step, PromptCursor(2, seed=1), steps=1, batch=64, timeout=1.0, report=lambda *_: None)
    assert sorted(seen[-1]) == [0, 1]  # a batch is never larger than the data


def test_supervised_training_continues_where_it_was_stopped() -> None:
    taken: list[list[int]] = []

    def step(rows: list[int]) -> Pending[Metrics]:
        taken.append(rows)
        return Pending.of({})

    numbers: list[int] = []

    def go_on(cursor: PromptCursor, start: int, steps: int) -> None:
        train(step, cursor, steps=steps, batch=4, timeout=1.0, start=start,
              report=lambda number, _: numbers.append(number))  # fmt: skip

    go_on(PromptCursor(6, seed=1), 0, 5)
    whole, position = list(taken), PromptCursor(6, seed=1)
    taken.clear()
    go_on(position, 0, 2)
    go_on(PromptCursor(6, seed=1, position=position.position), 2, 5)
    assert taken == whole
    assert numbers == [1, 2, 3, 4, 5] * 2


def test_the_driver_is_short_and_knows_neither_processes_nor_tensors() -> None:
    source = DRIVER.read_text()
    assert len(source.splitlines()) <= 120
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module))
    allowed = ("rlsys.algorithms.", "rlsys.drivers.", "rlsys.config.")
    own = {"__future__", "time", "dataclasses", "rlsys.batch", "rlsys.runtime.pending"}
    assert {m for m in modules - own if not m.startswith(allowed)} == set()

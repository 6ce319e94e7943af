"""What the stages with a constraint share."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

import rlsys.stages.alignment as alignment
import rlsys.stages.safe_rlhf as stage_of_ppo
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import TimeoutConfig
from rlsys.models.shared import Base
from rlsys.runtime.pending import Pending
from rlsys.stages.alignment import IterationReport, cost_constraint
from rlsys.stages.context import Context
from rlsys.stages.safe_rlhf import SafeRlhfStage, _Handles
from tests.unit.test_scorers import world


def make_context(**members: Any) -> Context:
    scores, records = world(30, 10)
    config = SimpleNamespace(timeouts=TimeoutConfig(), dtype="float32")
    data = SimpleNamespace(pairs=lambda _: records, slice=lambda *_: None)
    display = SimpleNamespace(message=lambda _: None)
    made = {"config": config, "data": data, "display": display, "scores": scores}
    return cast(
        "Context",
        SimpleNamespace(group=lambda _: None, folder=lambda name: name, **made, **members),
    )


@pytest.mark.parametrize(
    ("form", "bound"), [("mean_cost", 0.1 * 5 + 0.9 * -1.5), ("unsafe_probability", 0.1)]
)
def test_the_constraint_is_calibrated_on_the_validation_answers(
    form: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context()

    class Scorer:
        def __init__(self, *_: object) -> None: ...

        def create(self, spec: object) -> Pending[None]:
            return Pending.of(None)

        def score_pairs(self, rows: range) -> Pending[Any]:
            return Pending.of(cast("Any", context).scores[list(rows)])

    monkeypatch.setattr(alignment, "ScorerHandle", Scorer)
    lagrange = LagrangeConfig(constraint=form, target_unsafe_rate=0.1)
    constraint, calibration = cost_constraint(context, "cost", lagrange, 64)
    assert constraint.bound == pytest.approx(bound)
    assert constraint.threshold == calibration["threshold"] == pytest.approx(-0.85)
    assert (constraint.safe, constraint.unsafe) == (-1.5, 5.0)
    assert constraint.platt is not None
    assert (constraint.platt.slope, constraint.platt.intercept) == (
        calibration["platt_slope"], calibration["platt_intercept"],
    )  # fmt: skip


def test_a_number_needs_no_answers() -> None:
    constraint, calibration = cost_constraint(
        cast("Context", None), "cost", LagrangeConfig(threshold="-0.25"), 64
    )
    assert (constraint.bound, constraint.platt, calibration) == (-0.25, None, {})


def test_the_end_counts_the_iterations_before_a_resume() -> None:
    rows = [("grpo", n, {"cost": float(n), "violation": n - 2.0}) for n in (1, 2, 3, 4)]
    report = IterationReport(make_context(rows=rows), *cast("Any", [None] * 7))
    assert report.end_metrics() == {"cost_end": 3.5, "violation_end": 1.5}


@pytest.mark.parametrize(
    ("named", "started"),
    [
        ({}, {"reward_critic": "reward", "cost_critic": "cost"}),
        ({"reward_critic": "r", "cost_critic": "c"}, {"reward_critic": "r", "cost_critic": "c"}),
    ],
)
def test_critics_start_from_the_scorers_or_from_what_is_named(
    named: dict[str, str], started: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    class Group:
        def create(self, role: str, spec: Any) -> Pending[Any]:
            made[role] = spec
            return Pending.of(None)

    checked: list[dict[str, str]] = []
    monkeypatch.setattr(stage_of_ppo, "check_same_processor", checked.append)
    context = make_context(
        runtime=SimpleNamespace(transport=lambda: "shm"),
        training=lambda *_: None,
        digest=lambda name: f"digest of {name}",
    )
    cast("Any", context).group = lambda _: Group()
    cast("Any", context.config).engine = SimpleNamespace(chunk_prompts=1)
    stage = SafeRlhfStage(policy="policy", reward="reward", cost="cost", iterations=1, **named)
    _Handles(context, stage, 1).create()
    assert {role: made[role].model for role in started} == started
    assert started.items() <= checked[0].items(), "their token ids are compared with the policy's"
    assert (made["reward"].model, made["cost"].model) == ("reward", "cost")
    bases = {made[role].base for role in ("reward", "cost", "reward_critic", "cost_critic")}
    assert bases == {Base("policy", "digest of policy")}

"""``grpo``: GRPO-Lagrangian, constrained policy optimisation without critics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlsys.algorithms.group_advantages import SCALES
from rlsys.artifacts import PROGRESS
from rlsys.batch import PromptCursor
from rlsys.config.keys import key
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import RunConfig
from rlsys.config.updates import UpdateConfig
from rlsys.data.prepare import Datasets, Read
from rlsys.data.slice import RowKind
from rlsys.drivers.constrained import ConstrainedState
from rlsys.drivers.constraint import Constraint
from rlsys.drivers.gap import gap_for
from rlsys.drivers.grpo_lagrangian import GrpoRoles, GrpoRun, grpo_lagrangian
from rlsys.drivers.multiplier import Multiplier
from rlsys.drivers.sampling import sync_weights, total_steps
from rlsys.errors import ConfigError
from rlsys.models.shared import Base
from rlsys.report import training as charts
from rlsys.report.drawing import SKY
from rlsys.report.section import KindReport
from rlsys.roles.factory import check_same_processor
from rlsys.roles.policy import ROLE as POLICY
from rlsys.roles.policy import PolicyHandle, PolicySpec
from rlsys.roles.reference import ROLE as REFERENCE
from rlsys.roles.reference import ReferenceHandle, ReferenceSpec
from rlsys.roles.rollout import ROLE as ROLLOUT
from rlsys.roles.rollout import RolloutHandle, RolloutSpec
from rlsys.roles.scorer import COST, REWARD, ScorerHandle, ScorerSpec
from rlsys.runtime.pending import Metrics
from rlsys.stages.alignment import (
    AlignmentConfig,
    IterationReport,
    calibration_reads,
    check_calibration,
    check_prompts,
    cost_constraint,
)
from rlsys.stages.cached_rollout import CachedRollout
from rlsys.stages.checkpoints import StageCheckpoints
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.lengths import check_lengths
from rlsys.stages.rollout import rollout_handle


@dataclass
class GrpoConfig(UpdateConfig):
    """One GRPO-Lagrangian iteration."""

    scale: str = key(
        "group",
        "What centred scores are divided by: deviation of their group or of the batch, or nothing.",
        choices=SCALES,
    )
    kl_beta: float = key(0.02, "Weight of the KL divergence to the reference, in the loss.", ge=0)

    def check(self) -> None:
        if self.samples_per_prompt < 2:
            raise ConfigError(
                "samples_per_prompt: a group needs at least two responses to a prompt, got 1"
            )


@dataclass
class GrpoStage(AlignmentConfig):
    """GRPO-Lagrangian; with ``lagrange.rule: fixed`` at a fixed multiplier, and without ``cost``
    on reward alone.
    """

    kind: str = key("grpo", "Kind of stage.", choices=("grpo",))
    cost: str = key("", "Cost model: a stage or a folder; empty: reward alone.", ref="cost")
    grpo: GrpoConfig = key(GrpoConfig(), "One iteration.")

    def check(self) -> None:
        super().check()
        if not self.cost and self.lagrange != LagrangeConfig():
            raise ConfigError(
                "lagrange: there is no constraint without a cost model; name one in cost"
            )


def run_grpo(context: Context, name: str, stage: GrpoStage, folder: Path) -> Result:
    """GRPO-Lagrangian, from the start policy to a trained one."""
    config, limits, settings = context.config, context.config.timeouts, stage.grpo
    lagrange, calibration = stage.lagrange, Metrics()
    constraint: Constraint | None = None
    multiplier = Multiplier.start(lagrange)
    if stage.cost:
        token_budget = stage.train.micro_batch_tokens
        constraint, calibration = cost_constraint(context, stage.cost, lagrange, token_budget)
    else:  # reward alone
        lagrange, multiplier.value = LagrangeConfig(rule="fixed", init=0.0), 0.0
    count = len(context.data.prompts(stage.split))
    iterations = stage.iterations_on(count, settings)
    rollout = rollout_handle(context, settings.max_new_tokens, settings.temperature)
    policy = PolicyHandle(context.group(POLICY.name), context.runtime.transport, settings)
    reference = ReferenceHandle(context.group(REFERENCE.name), REFERENCE.name)
    reward = ScorerHandle(context.group(REWARD.name), REWARD.name)
    cost = ScorerHandle(context.group(COST.name), COST.name) if stage.cost else None
    _create(context, stage, iterations, rollout, policy, reference, reward, cost)
    cached = CachedRollout(rollout, folder / PROGRESS / "rollouts")
    trained = {policy.role: policy}
    checkpoints = StageCheckpoints(context, name, folder, trained, keep=stage.keep_checkpoints)
    state = ConstrainedState(multiplier, PromptCursor(count, config.seed))
    if (saved := checkpoints.restore()) is not None:
        state.restore(saved)
    gap = gap_for(stage.gap, config.dtype)
    run = GrpoRun(
        iterations,
        constraint,
        config.seed,
        settings,
        settings.scale,
        settings.kl_beta,
        lagrange,
        gap,
        limits,
    )
    sync_weights(policy, cached, state.iteration, limits.sync)
    with context.display.bar(name, iterations) as bar:
        bar.advance("", by=state.iteration)
        report = IterationReport(context, name, stage, checkpoints, cached, bar, iterations)
        roles = GrpoRoles(cached, policy, reference, reward, cost)
        grpo_lagrangian(roles, state, run, report)
    policy.save(folder).result(limits.call)
    for handle in (policy, reference, reward, cost):
        if handle is not None:
            handle.drop().result(limits.call)
    end: Metrics = {}
    if constraint is not None:
        end = {"threshold": constraint.threshold, "lambda": state.multiplier.value}
        end |= report.end_metrics()
    return {**calibration, **end, **report.steady_state()}


def _create(
    context: Context,
    stage: GrpoStage,
    iterations: int,
    rollout: RolloutHandle,
    policy: PolicyHandle,
    reference: ReferenceHandle,
    reward: ScorerHandle,
    cost: ScorerHandle | None,
) -> None:
    """Build all roles in parallel."""
    config, dtype = context.config, context.config.dtype
    data = context.data.slice(stage.split, RowKind.PROMPTS)
    token_budget, frozen = stage.train.micro_batch_tokens, stage.frozen
    named = {POLICY.name: stage.policy, REWARD.name: stage.reward, COST.name: stage.cost}
    models = {role: context.folder(source) for role, source in named.items() if source}
    check_same_processor(models)
    base = Base(models[POLICY.name], context.digest(stage.policy))
    steps = total_steps(stage.grpo, iterations)
    training = context.training(stage.train, stage.optim, steps)
    started = [
        rollout.create(RolloutSpec(models[POLICY.name], data, config.engine, dtype)),
        policy.create(PolicySpec(models[POLICY.name], data, dtype, training)),
        reference.create(ReferenceSpec(models[POLICY.name], data, dtype, token_budget, frozen)),
        reward.create(ScorerSpec(models[REWARD.name], data, dtype, token_budget, frozen, base)),
    ]
    if cost is not None:
        started.append(
            cost.create(ScorerSpec(models[COST.name], data, dtype, token_budget, frozen, base))
        )
    for pending in started:
        pending.result(config.timeouts.start)


def _roles(stage: GrpoStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (
        ROLLOUT.name,
        POLICY.name,
        REFERENCE.name,
        REWARD.name,
        *([COST.name] if stage.cost else []),
    )


def _check(config: RunConfig, name: str, stage: GrpoStage) -> None:
    check_lengths(config, f"stages.{name}.grpo", stage.grpo.max_new_tokens)


def _check_data(name: str, stage: GrpoStage, data: Datasets) -> None:
    check_prompts(f"stages.{name}.grpo", stage.split, stage.grpo, data)
    if stage.cost:
        check_calibration(name, stage.lagrange, data)


def _reads(stage: GrpoStage) -> Sequence[Read]:
    return [
        Read(stage.split, RowKind.PROMPTS, learned=True),
        *(calibration_reads(stage.lagrange) if stage.cost else []),
    ]


PICTURES = [
    charts.REWARD,
    charts.COST,
    charts.MULTIPLIER,
    charts.VIOLATION,
    charts.UNSAFE_PROBABILITY,
    charts.KL,
    charts.LOGPROB_GAP,
    charts.LENGTH,
    charts.UPDATES,
    charts.TIME,
]
GRPO = StageKind(
    "grpo",
    GrpoStage,
    run_grpo,
    _roles,
    makes="policy",
    check=_check,
    reads=_reads,
    check_data=_check_data,
    report=KindReport(
        heading="GRPO training",
        anchor="grpo",
        nav="GRPO",
        order=31,
        section=partial(charts.training_section, pictures=PICTURES),
        ended=charts.ended,
        colour=SKY,
        aligns=True,
    ),
    samples=True,
    trains=True,
)

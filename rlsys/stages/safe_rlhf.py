"""``safe_rlhf``: PPO-Lagrangian (Safe RLHF-V)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlsys.artifacts import PROGRESS
from rlsys.batch import PromptCursor
from rlsys.config.keys import key
from rlsys.config.schema import OptimConfig, RunConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.prepare import Datasets, Read
from rlsys.data.slice import RowKind
from rlsys.drivers.gap import gap_for
from rlsys.drivers.multiplier import Multiplier
from rlsys.drivers.safe_rlhf import safe_rlhf
from rlsys.drivers.safe_rlhf_ahead import AheadState, safe_rlhf_ahead
from rlsys.drivers.safe_rlhf_state import Roles, SafeRlhfRun
from rlsys.drivers.sampling import sync_weights, total_steps
from rlsys.models.shared import Base
from rlsys.report import training as charts
from rlsys.report.drawing import BLUE
from rlsys.report.section import KindReport
from rlsys.roles.critic import COST_CRITIC, REWARD_CRITIC, CriticHandle, CriticSpec
from rlsys.roles.factory import check_same_processor
from rlsys.roles.policy import ROLE as POLICY
from rlsys.roles.policy import PolicyHandle, PolicySpec
from rlsys.roles.reference import ROLE as REFERENCE
from rlsys.roles.reference import ReferenceHandle, ReferenceSpec
from rlsys.roles.rollout import ROLE as ROLLOUT
from rlsys.roles.rollout import RolloutSpec
from rlsys.roles.scorer import COST, REWARD, ScorerHandle, ScorerSpec
from rlsys.runtime.pending import Pending
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
class SafeRlhfStage(AlignmentConfig):
    """PPO-Lagrangian (Safe RLHF-V)."""

    kind: str = key("safe_rlhf", "Kind of stage.", choices=("safe_rlhf",))
    ppo: PpoConfig = key(PpoConfig(), "One iteration.")
    one_step_ahead: bool = key(
        False,
        "Draw the next batch while this one trains: its rollouts are then one version of the "
        "weights older than the policy, which the ratio of the clipped loss is against.",
    )
    reward_critic: str = key(
        "",
        "What the reward's critic starts from: a reward stage or a folder; empty: as `reward`.",
        ref="reward",
    )
    cost_critic: str = key(
        "",
        "What the cost's critic starts from: a cost stage or a folder; empty: as `cost`.",
        ref="cost",
    )
    critic_optim: OptimConfig = key(OptimConfig(), "Optimiser of both critics.")
    critic_train: TrainConfig = key(
        TrainConfig(), "How both critics train.", trains=("reward", "cost")
    )


def run_safe_rlhf(context: Context, name: str, stage: SafeRlhfStage, folder: Path) -> Result:
    """PPO-Lagrangian, from the start policy to a trained one."""
    config, limits = context.config, context.config.timeouts
    token_budget = stage.train.micro_batch_tokens
    constraint, calibration = cost_constraint(context, stage.cost, stage.lagrange, token_budget)
    count = len(context.data.prompts(stage.split))
    iterations = stage.iterations_on(count, stage.ppo)
    handles = _Handles(context, stage, iterations)
    handles.create()
    rollout = CachedRollout(handles.rollout, folder / PROGRESS / "rollouts")
    roles = handles.roles(rollout)
    trained = {
        each.role: each for each in (handles.policy, handles.reward_critic, handles.cost_critic)
    }
    keep = stage.keep_checkpoints
    checkpoints = StageCheckpoints(context, name, folder, trained, keep=keep)
    state = AheadState(Multiplier.start(stage.lagrange), PromptCursor(count, config.seed))
    if (saved := checkpoints.restore()) is not None:
        state.restore(saved)
    gap = gap_for(stage.gap, config.dtype)
    shown = len(context.data.demonstrations(*_demonstrated(stage))) if stage.ppo.ptx_coef else 0
    run = SafeRlhfRun(
        iterations, constraint, config.seed, stage.ppo, stage.lagrange, gap, limits, shown
    )
    sync_weights(handles.policy, rollout, state.iteration, limits.sync)
    with context.display.bar(name, iterations) as bar:
        bar.advance("", by=state.iteration)
        lag = int(stage.one_step_ahead)
        report = IterationReport(context, name, stage, checkpoints, rollout, bar, iterations, lag)
        if stage.one_step_ahead:
            safe_rlhf_ahead(roles, rollout, state, run, report)
        else:
            safe_rlhf(roles, state, run, report)
    handles.policy.save(folder).result(limits.call)
    handles.drop()
    steady = report.steady_state()
    end = {"threshold": constraint.threshold, "lambda": state.multiplier.value}
    return {**calibration, **end, **report.end_metrics(), **steady}


class _Handles:
    """Handles of all seven roles, on the groups of the recipe."""

    def __init__(self, context: Context, stage: SafeRlhfStage, iterations: int) -> None:
        self.context, self.stage, self.iterations = context, stage, iterations
        ppo, group = stage.ppo, context.group
        self.rollout = rollout_handle(context, ppo.max_new_tokens, ppo.temperature)
        self.policy = PolicyHandle(group(POLICY.name), context.runtime.transport, ppo)
        self.reference = ReferenceHandle(group(REFERENCE.name), REFERENCE.name)
        self.reward = ScorerHandle(group(REWARD.name), REWARD.name)
        self.cost = ScorerHandle(group(COST.name), COST.name)
        self.reward_critic = CriticHandle(group(REWARD_CRITIC.name), REWARD_CRITIC, ppo)
        self.cost_critic = CriticHandle(group(COST_CRITIC.name), COST_CRITIC, ppo)

    def roles(self, rollout: CachedRollout) -> Roles:
        return Roles(
            rollout, self.policy, self.reference, self.reward, self.cost, self.reward_critic,
            self.cost_critic,
        )  # fmt: skip

    def create(self) -> None:
        """Build all roles in parallel."""
        context, stage, config = self.context, self.stage, self.context.config
        policy, reward, cost = map(context.folder, (stage.policy, stage.reward, stage.cost))
        reward_critic = context.folder(stage.reward_critic or stage.reward)
        cost_critic = context.folder(stage.cost_critic or stage.cost)
        check_same_processor(
            {
                POLICY.name: policy,
                REWARD.name: reward,
                COST.name: cost,
                REWARD_CRITIC.name: reward_critic,
                COST_CRITIC.name: cost_critic,
            }
        )
        ppo, dtype = stage.ppo, config.dtype
        data = context.data.slice(stage.split, RowKind.PROMPTS)
        split, target = _demonstrated(stage)
        shown = context.data.slice(split, RowKind.DEMONSTRATIONS, target) if ppo.ptx_coef else None
        steps = total_steps(ppo, self.iterations)
        trained = context.training(stage.train, stage.optim, steps)
        critic = context.training(stage.critic_train, stage.critic_optim, steps)
        token_budget, frozen = stage.train.micro_batch_tokens, stage.frozen
        base = Base(policy, context.digest(stage.policy))
        started: list[Pending[list[None]]] = [
            self.rollout.create(RolloutSpec(policy, data, config.engine, dtype)),
            self.policy.create(PolicySpec(policy, data, dtype, trained, shown)),
            self.reference.create(ReferenceSpec(policy, data, dtype, token_budget, frozen)),
            self.reward.create(ScorerSpec(reward, data, dtype, token_budget, frozen, base)),
            self.cost.create(ScorerSpec(cost, data, dtype, token_budget, frozen, base)),
            self.reward_critic.create(CriticSpec(reward_critic, data, dtype, critic, base)),
            self.cost_critic.create(CriticSpec(cost_critic, data, dtype, critic, base)),
        ]
        for pending in started:
            pending.result(config.timeouts.start)

    def drop(self) -> None:
        """Free every role but the rollout engine, which is slow to start."""
        scored = (self.policy, self.reference, self.reward, self.cost)
        for handle in (*scored, self.reward_critic, self.cost_critic):
            handle.drop().result(self.context.config.timeouts.call)


def _roles(stage: SafeRlhfStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    scored = (ROLLOUT.name, POLICY.name, REFERENCE.name, REWARD.name, COST.name)
    return (*scored, REWARD_CRITIC.name, COST_CRITIC.name)


def _check(config: RunConfig, name: str, stage: SafeRlhfStage) -> None:
    check_lengths(config, f"stages.{name}.ppo", stage.ppo.max_new_tokens)


def _reads(stage: SafeRlhfStage) -> Sequence[Read]:
    split, target = _demonstrated(stage)
    shown = (
        [Read(split, RowKind.DEMONSTRATIONS, target, learned=True)] if stage.ppo.ptx_coef else []
    )
    prompts = Read(stage.split, RowKind.PROMPTS, learned=True)
    return [prompts, *shown, *calibration_reads(stage.lagrange)]


def _demonstrated(stage: SafeRlhfStage) -> tuple[str, str]:
    """The split and the imitated response of PTX's demonstrations."""
    return stage.ppo.ptx_split, "more_helpful"


def _check_data(name: str, stage: SafeRlhfStage, data: Datasets) -> None:
    check_prompts(f"stages.{name}.ppo", stage.split, stage.ppo, data)
    check_calibration(name, stage.lagrange, data)


PICTURES = [
    charts.REWARD,
    charts.COST,
    charts.MULTIPLIER,
    charts.VIOLATION,
    charts.UNSAFE_PROBABILITY,
    charts.KL,
    charts.LOGPROB_GAP,
    charts.LENGTH,
    charts.CRITICS,
    charts.UPDATES,
    charts.TIME,
]
SAFE_RLHF = StageKind(
    "safe_rlhf",
    SafeRlhfStage,
    run_safe_rlhf,
    _roles,
    makes="policy",
    check=_check,
    samples=True,
    trains=True,
    reads=_reads,
    check_data=_check_data,
    report=KindReport(
        heading="Safe RLHF training",
        anchor="training",
        nav="Training",
        order=30,
        section=partial(charts.training_section, pictures=PICTURES),
        absent="No safe_rlhf stage ran: metrics.jsonl has no row of that kind.",
        ended=charts.ended,
        colour=BLUE,
        aligns=True,
    ),
)

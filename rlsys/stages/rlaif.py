"""``rlaif``: rounds of AI feedback (DREAM), resumed where a stopped run left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from rlsys.artifacts import PROGRESS
from rlsys.config.engine import GapConfig
from rlsys.config.judging import AskingStage
from rlsys.config.keys import key
from rlsys.config.schema import OptimConfig, RunConfig, TrainConfig
from rlsys.data.prepare import Read
from rlsys.data.slice import RowKind
from rlsys.display import note
from rlsys.drivers.gap import gap_for, gap_warning
from rlsys.drivers.rlaif import rlaif, sync_policy
from rlsys.drivers.rlaif_state import RlaifRoles, RlaifRun, RlaifState
from rlsys.errors import ConfigError
from rlsys.judging.pairs import PairRule
from rlsys.models.load import load_processor
from rlsys.report.drawing import GREEN
from rlsys.report.feedback import feedback_section
from rlsys.report.section import KindReport
from rlsys.roles.factory import check_same_processor
from rlsys.roles.guard import ROLE as GUARD
from rlsys.roles.guard import GuardHandle, GuardSpec
from rlsys.roles.policy import ROLE as POLICY
from rlsys.roles.policy import PolicyHandle, PolicySpec
from rlsys.roles.rollout import ROLE as ROLLOUT
from rlsys.roles.rollout import RolloutHandle, RolloutSpec
from rlsys.roles.scorer import COST, ScorerHandle, ScorerSpec
from rlsys.runtime.pending import Metrics
from rlsys.stages.cached_rollout import CachedRollout
from rlsys.stages.checkpoints import StageCheckpoints
from rlsys.stages.context import Context
from rlsys.stages.judge import OpenJudge, judge_inputs, judge_roles, open_judge
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.lengths import check_lengths
from rlsys.stages.rollout import rollout_handle


@dataclass
class RlaifStage(AskingStage):
    """Iterative AI feedback (DREAM)."""

    kind: str = key("rlaif", "Kind of stage.", choices=("rlaif",))
    policy: str = key(MISSING, "Start policy: a stage or a folder.", ref="policy")
    split: str = key("train", "Split of the prompts, or several joined by a plus sign.")
    rounds: int = key(3, "Rounds of sampling, feedback and training on pairs.", ge=1)
    num_prompts: int = key(
        256, "Prompts of the split per round; all there are, where there are fewer.", ge=1
    )
    samples_per_prompt: int = key(4, "Answers per prompt.", ge=2)
    max_new_tokens: int = key(16, "Longest answer, tokens.", ge=1)
    temperature: float = key(1.0, "Sampling temperature.", gt=0, le=2)
    recognition_weight: float = key(
        0.5, "Weight of the share of verified risks an answer recognises, beside the score.", ge=0
    )
    margin: float = key(2.0, "Least difference of the scores of a pair, points of 10.", ge=0, le=10)
    min_chosen_score: float = key(7.0, "Least global score of a chosen answer.", ge=0, le=10)
    cost: str = key("", "A cost model; its score is subtracted with `cost_weight`.", ref="cost")
    cost_weight: float = key(0.0, "Weight of the cost model's score.", ge=0)
    guard: str = key("", "A guard; an answer that it flags is never chosen.", ref="guard")
    guard_threshold: float = key(
        0.5, "Probability from which the guard flags an answer.", gt=0, lt=1
    )
    beta: float = key(0.1, "Scale of the implicit reward of DPO.", gt=0)
    epochs: int = key(1, "Passes over the pairs of a round.", ge=1)
    minibatch: int = key(32, "Pairs per optimiser step.", ge=1)
    gap: GapConfig = key(
        GapConfig(), "Bound of the engine-trainer log-probability gap.", affects_result=False
    )
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the policy trains.", trains=("policy",))

    def check(self) -> None:
        if bool(self.cost) != bool(self.cost_weight):
            raise ConfigError("cost_weight: give both cost and its weight, or neither")


def run_rlaif(context: Context, name: str, stage: RlaifStage, folder: Path) -> Result:
    """Rounds of AI feedback; the policy after round k is in ``folder/round-<k>``.

    A resumed stage finds the judge's earlier replies in its cache.
    """
    limits = context.config.timeouts
    policy = PolicyHandle(context.group(POLICY.name), context.runtime.transport)
    checkpoints = StageCheckpoints(context, name, folder, {policy.role: policy})
    with (
        open_judge(context, stage.judge, stage.split) as opened,
        context.display.bar(name, stage.rounds) as bar,
    ):
        rollout = rollout_handle(context, stage.max_new_tokens, stage.temperature)
        cached = CachedRollout(rollout, folder / PROGRESS / "rollouts")
        cost, guard = _create(context, stage, rollout, policy)
        roles = RlaifRoles(cached, policy, opened.judge, cost, guard)
        saved = checkpoints.restore()
        state = RlaifState.of(saved) if saved else RlaifState()
        run = _run_of(context, stage, opened)
        last: Metrics = dict(saved["last"]) if saved else {}
        requested, calls = last.get("questions", 0.0), folder / PROGRESS / "calls"
        opened.judge.log_calls(calls, state.round)
        bar.advance("", by=state.round)

        def report(now: RlaifState, metrics: Metrics) -> None:
            last.clear()
            last.update(metrics | {"questions": requested + opened.judge.requested})
            context.log(name, stage.kind, now.round, last)
            if warning := gap_warning(metrics, f"round {now.round}"):
                context.display.message(warning)
            policy.save(folder / f"round-{now.round}").result(limits.call)
            checkpoints.save(now.round, {**now.as_dict(), "last": last})
            cached.evict(now.round)
            opened.judge.log_calls(calls, now.round)
            bar.advance(note(last, "score", "recognised", "pairs/pair", "time/round"))

        sync_policy(roles, state.round, run)
        questions = [record.question for record in context.data.prompts(stage.split).rows]
        rlaif(roles, state, run, questions, report)
    policy.save(folder).result(limits.call)
    for role in (policy, cost, guard):
        if role is not None:
            role.drop().result(limits.call)
    return last


def _create(
    context: Context, stage: RlaifStage, rollout: RolloutHandle, policy: PolicyHandle
) -> tuple[ScorerHandle | None, GuardHandle | None]:
    """Build all roles at once. Returns: cost model and guard, None if not in the stage."""
    config, dtype = context.config, context.config.dtype
    data = context.data.slice(stage.split, RowKind.PROMPTS)
    models = {POLICY.name: context.folder(stage.policy)}
    steps = stage.rounds * stage.epochs * -(-stage.num_prompts // stage.minibatch)
    training = context.training(stage.train, stage.optim, steps)
    token_budget = stage.train.micro_batch_tokens
    cost = guard = None
    created = [
        rollout.create(RolloutSpec(models[POLICY.name], data, config.engine, dtype)),
        policy.create(PolicySpec(models[POLICY.name], data, dtype, training)),
    ]
    if stage.cost:
        models[COST.name] = context.folder(stage.cost)
        cost = ScorerHandle(context.group(COST.name), COST.name)
        created.append(cost.create(ScorerSpec(models[COST.name], data, dtype, token_budget)))
    if stage.guard:
        models[GUARD.name] = context.folder(stage.guard)
        guard = GuardHandle(context.group(GUARD.name), stage.guard_threshold)
        created.append(guard.create(GuardSpec(models[GUARD.name], data, dtype, token_budget)))
    check_same_processor(models)
    for pending in created:
        pending.result(config.timeouts.start)
    return cost, guard


def _run_of(context: Context, stage: RlaifStage, opened: OpenJudge) -> RlaifRun:
    limits = context.config.timeouts
    tokenizer = load_processor(context.folder(stage.policy)).tokenizer
    return RlaifRun(
        rounds=stage.rounds,
        num_prompts=stage.num_prompts,
        samples_per_prompt=stage.samples_per_prompt,
        joint=stage.joint,
        rule=PairRule(
            stage.recognition_weight, stage.cost_weight, stage.margin, stage.min_chosen_score
        ),
        beta=stage.beta,
        epochs=stage.epochs,
        minibatch=stage.minibatch,
        seed=context.config.seed,
        max_parse_failures=stage.max_parse_failures,
        gap=gap_for(stage.gap, context.config.dtype),
        timeout=limits.call,
        judge_timeout=opened.timeout,
        sync_timeout=limits.sync,
        decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
    )


def _roles(stage: RlaifStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    optional = [role.name for role in (COST, GUARD) if getattr(stage, role.name)]
    return (ROLLOUT.name, POLICY.name, *optional, *judge_roles(stage, earlier))


def _parts(stage: RlaifStage) -> Sequence[str]:
    return [f"round-{number}" for number in range(1, stage.rounds + 1)]


def _check(config: RunConfig, name: str, stage: RlaifStage) -> None:
    check_lengths(config, f"stages.{name}", stage.max_new_tokens)


def _reads(stage: RlaifStage) -> Sequence[Read]:
    return [Read(stage.split, RowKind.PROMPTS, learned=True, judged=True)]


RLAIF = StageKind(
    "rlaif",
    RlaifStage,
    run_rlaif,
    _roles,
    makes="policy",
    parts=_parts,
    check=_check,
    inputs=judge_inputs,
    samples=True,
    trains=True,
    reads=_reads,
    report=KindReport(
        heading="AI feedback",
        anchor="feedback",
        nav="AI feedback",
        order=20,
        section=feedback_section,
        colour=GREEN,
    ),
)

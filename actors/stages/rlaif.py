"""Iterative AI feedback as a stage, taken up again where a stopped run left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.display import note
from actors.proxies import FeedbackLearner, RemoteGuard, RemoteRole, RemoteScorer
from actors.recipe import Context
from actors.stages.judge import OpenJudge, open_judge
from actors.stages.rollout import make_rollout
from rlsys.artifacts import PROGRESS
from rlsys.checkpoint import read_checkpoint, save_checkpoint
from rlsys.config.feedback import RlaifStage
from rlsys.config.schema import TrainConfig
from rlsys.data.slice import RowKind
from rlsys.drivers.kept import KeptRollout
from rlsys.drivers.rlaif import RlaifRoles, RlaifRun, RlaifState, rlaif, sync_policy
from rlsys.engines.workbench import RoleSpec, check_same_processor
from rlsys.errors import ConfigError
from rlsys.judging.pairs import PairRule
from rlsys.models.load import load_processor
from rlsys.roles import Metrics


def run_rlaif(context: Context, name: str, stage: RlaifStage, folder: Path) -> dict[str, Any]:
    """Rounds of AI feedback; the policy after round k is in ``folder/round-<k>``.

    ``folder`` may hold what a stopped run left: its rounds, and the answers of the one under way.
    What the judge had said is in its memory.
    """
    limits = context.config.timeouts
    rounds = _Rounds(context, name, stage, folder)
    judge = context.config.stages[stage.judge]
    with (
        open_judge(context, judge, "train") as opened,
        context.display.bar(name, stage.rounds) as bar,
    ):
        roles, run = rounds.cast(opened), _run_of(context, stage, opened)
        bar.advance("", by=rounds.state.round)

        def report(now: RlaifState, metrics: Metrics) -> None:
            metrics = metrics | {"questions": float(opened.judge.asked)}
            rounds.keep(now, metrics)
            bar.advance(note(metrics, "score", "recognised", "pairs/pair", "time/round"))

        sync_policy(roles, rounds.state.round, run)
        questions = [record.question for record in context.data.prompts("train").rows]
        rlaif(roles, rounds.state, run, questions, report)
    rounds.policy.save(str(folder)).result(limits.call)
    for role in (roles.policy, roles.cost, roles.guard):
        if isinstance(role, RemoteRole):
            role.drop().result(limits.call)
    return rounds.rows[-1]


class _Rounds:
    """The stage's policy and engines, and what is on disk of its rounds."""

    def __init__(self, context: Context, name: str, stage: RlaifStage, folder: Path) -> None:
        self.context, self.name, self.stage, self.folder = context, name, stage, folder
        self.progress = folder / PROGRESS
        self.limit = context.config.timeouts.call
        group, engine = context.cluster.by_role["policy"], context.config.engine
        self.policy = FeedbackLearner(group, engine.transport, context.cluster.token)
        self.engines = make_rollout(context, stage.max_new_tokens, stage.temperature)
        self.rollout = KeptRollout(self.engines, self.progress / "answers")
        self.state = RlaifState()
        self.rows: list[Metrics] = []

    def cast(self, opened: OpenJudge) -> RlaifRoles:
        """All roles, built at once, with the weights of the last finished round."""
        context, stage = self.context, self.stage
        by_role = context.cluster.by_role
        data = context.data.slice("train", RowKind.PROMPTS)
        policy = context.folder(stage.policy)
        config, frozen = context.config, TrainConfig(dtype=stage.train.dtype)
        steps = stage.rounds * stage.epochs * -(-stage.prompts // stage.minibatch)
        created = [
            self.engines.create(
                RoleSpec("rollout", policy, data, config.seed, engine=config.engine)
            ),
            self.policy.create(
                RoleSpec("policy", policy, data, config.seed, stage.train, stage.optim, steps)
            ),
        ]
        models = {"policy": policy}
        cost = guard = None
        if stage.cost:
            models["cost"] = context.folder(stage.cost)
            cost = RemoteScorer(by_role["cost"], "cost")
            created.append(cost.create(RoleSpec("cost", models["cost"], data, train=frozen)))
        if stage.guard:
            models["guard"] = context.folder(stage.guard)
            guard = RemoteGuard(by_role["guard"], stage.guard_threshold)
            created.append(guard.create(RoleSpec("guard", models["guard"], data, train=frozen)))
        check_same_processor(models)
        for pending in created:
            pending.result(config.timeouts.start)
        self._take_up()
        return RlaifRoles(self.rollout, self.policy, opened.judge, cost, guard)

    def _take_up(self) -> None:
        saved = sorted((self.progress / "rounds").glob("iteration-*"))
        if not saved:
            return
        driver = read_checkpoint(saved[-1])
        ranks = len(self.policy.group.ranks)
        if driver["ranks"] != ranks:
            raise ConfigError(
                f"groups: {saved[-1]} was saved by {driver['ranks']} ranks of the policy, the "
                f"recipe has {ranks}; give as many, or delete {self.folder}"
            )
        self.state, self.rows = RlaifState.of(driver), driver["rows"]
        self.policy.load_state(str(saved[-1])).result(self.limit)
        for number, metrics in enumerate(self.rows, 1):
            self.context.log(self.name, self.stage.kind, number, metrics)
        self.context.display.say(f"    taken up again after round {self.state.round}")

    def keep(self, now: RlaifState, metrics: Metrics) -> None:
        """A finished round: its numbers, its policy, and all that the next one starts from."""
        self.rows.append(metrics)
        self.context.log(self.name, self.stage.kind, now.round, metrics)
        self.policy.save(str(self.folder / f"round-{now.round}")).result(self.limit)

        def save_roles(into: Path) -> None:
            self.policy.save_state(str(into)).result(self.limit)

        ranks = len(self.policy.group.ranks)
        driver = {**now.as_dict(), "rows": self.rows, "ranks": ranks}
        save_checkpoint(self.progress / "rounds", now.round, driver, save_roles, keep=1)
        self.rollout.forget(now.round)


def _run_of(context: Context, stage: RlaifStage, opened: OpenJudge) -> RlaifRun:
    limits, tokenizer = (
        context.config.timeouts,
        load_processor(context.folder(stage.policy)).tokenizer,
    )
    return RlaifRun(
        rounds=stage.rounds,
        prompts=stage.prompts,
        samples=stage.samples,
        joint=stage.joint,
        rule=PairRule(stage.recognition, stage.cost_weight, stage.margin, stage.floor),
        beta=stage.beta,
        epochs=stage.epochs,
        minibatch=stage.minibatch,
        seed=context.config.seed,
        max_unread=stage.max_unread,
        gap=stage.gap,
        timeout=limits.call,
        judge_timeout=opened.timeout,
        sync_timeout=limits.sync,
        decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
    )

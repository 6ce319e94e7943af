"""PPO-Lagrangian as a stage."""

from __future__ import annotations

import statistics
from collections import deque
from pathlib import Path
from typing import Any

from actors.display import note
from actors.proxies import (
    RemoteCritic,
    RemotePolicy,
    RemoteReference,
    RemoteRole,
    RemoteScorer,
    ScorerLearner,
)
from actors.recipe import Context
from actors.stages.rollout import make_rollout
from rlsys.batch import PromptCursor, Rollouts, Scores
from rlsys.checkpoint import save_checkpoint
from rlsys.config.schema import TrainConfig
from rlsys.config.stages import SafeRlhfStage, ScorerStage
from rlsys.data.slice import RowKind
from rlsys.drivers.safe_rlhf import safe_rlhf, sync_weights
from rlsys.drivers.safe_rlhf_state import SafeRlhfRun, SafeRlhfState
from rlsys.drivers.scorers import threshold_from_budget
from rlsys.engines.workbench import RoleSpec, check_same_processor
from rlsys.roles import Metrics, Roles


def run_safe_rlhf(
    context: Context, name: str, stage: SafeRlhfStage, folder: Path
) -> dict[str, Any]:
    """PPO-Lagrangian, from the start policy to a trained one."""
    config, limits = context.config, context.config.timeouts
    threshold, calibration = _threshold(context, stage)
    roles = _cast(context, stage)
    state = SafeRlhfState(
        stage.lagrange.init,
        deque(maxlen=stage.lagrange.window),
        PromptCursor(len(context.data.prompts("train")), config.seed),
    )
    run = SafeRlhfRun(
        stage.iterations,
        threshold,
        config.seed,
        stage.ppo,
        stage.lagrange,
        stage.gap,
        limits,
    )
    sync_weights(roles, 0, limits)
    history: list[Metrics] = []
    with context.display.bar(name, stage.iterations) as bar:

        def report(now: SafeRlhfState, metrics: Metrics, _: Rollouts, __: Scores) -> None:
            context.log(name, stage.kind, now.iteration, metrics)
            history.append(metrics)
            if metrics["gap/max"] > stage.gap.warn:
                context.display.say(
                    f"[yellow]warning[/yellow] iteration {now.iteration}: engine and trainer "
                    f"differ by {metrics['gap/max']:.1e} nats (expected at most "
                    f"{stage.gap.warn:.0e})"
                )
            if stage.checkpoint_every and now.iteration % stage.checkpoint_every == 0:
                _checkpoint(context, name, stage, now, roles)
            bar.advance(note(metrics, "reward", "cost", "lambda", "kl", "samples_per_s"))

        safe_rlhf(roles, state, run, report)
    assert isinstance(roles.policy, RemotePolicy)
    roles.policy.save(str(folder)).result(limits.call)
    _dismiss(roles, limits.call)
    steady = steady_state(history)
    context.display.say("    steady state: " + note(steady, *steady))
    return {**calibration, "threshold": threshold, "lambda": state.lam, **steady}


def steady_state(history: list[Metrics]) -> Metrics:
    """Medians over the later half of the iterations: speed and where the time goes, seconds."""
    later = history[len(history) // 2 :]
    names = ["samples_per_s", *(name for name in later[0] if name.startswith("time/"))]
    return {name: statistics.median(row[name] for row in later) for name in names}


def _checkpoint(
    context: Context, name: str, stage: SafeRlhfStage, state: SafeRlhfState, roles: Roles
) -> None:
    """Every trained role with its optimiser, and the driver's state."""

    def save_roles(folder: Path) -> None:
        for role in (roles.policy, roles.reward_critic, roles.cost_critic):
            assert isinstance(role, RemoteRole)
            role.save_state(str(folder)).result(context.config.timeouts.call)

    root = context.run_dir / "checkpoints" / name
    save_checkpoint(root, state.iteration, state.as_dict(), save_roles, stage.keep_checkpoints)


def _threshold(context: Context, stage: SafeRlhfStage) -> tuple[float, Metrics]:
    """The number in the recipe, or the one its budget stands for on the validation split."""
    if stage.lagrange.threshold != "auto":
        return float(stage.lagrange.threshold), {}
    limits = context.config.timeouts
    scorer = ScorerLearner(context.cluster.by_role["cost"], ScorerStage(kind="cost"))
    data = context.data.slice("validation", RowKind.PAIRS)
    spec = RoleSpec("cost", context.folder(stage.cost), data)
    scorer.create(spec).result(limits.start)
    pairs = context.data.pairs("validation")
    scores = scorer.score_pairs(list(range(len(pairs)))).result(limits.call)
    calibration = threshold_from_budget(scores, pairs, stage.lagrange.budget)
    context.display.say("    calibrated: " + note(calibration, *calibration))
    return calibration["threshold"], calibration


def _cast(context: Context, stage: SafeRlhfStage) -> Roles:
    """All seven roles, built at once on the groups the recipe places them on."""
    config, ppo = context.config, stage.ppo
    by_role = context.cluster.by_role
    policy, reward, cost = map(context.folder, (stage.policy, stage.reward, stage.cost))
    check_same_processor({"policy": policy, "reward": reward, "cost": cost})
    data, transport = context.data.slice("train", RowKind.PROMPTS), config.engine.transport
    steps = stage.iterations * ppo.epochs * -(-ppo.prompts * ppo.samples // ppo.minibatch)
    frozen = TrainConfig(dtype=stage.train.dtype, micro_batch_tokens=stage.train.micro_batch_tokens)
    trained = (config.seed, stage.train, stage.optim, steps)
    critic = (config.seed, stage.critic_train, stage.critic_optim, steps)
    roles = Roles(
        rollout=make_rollout(context, ppo.max_new_tokens, ppo.temperature),
        policy=RemotePolicy(by_role["policy"], ppo, transport, context.cluster.token),
        reference=RemoteReference(by_role["reference"], "reference"),
        reward=RemoteScorer(by_role["reward"], "reward"),
        cost=RemoteScorer(by_role["cost"], "cost"),
        reward_critic=RemoteCritic(by_role["reward_critic"], "reward", ppo),
        cost_critic=RemoteCritic(by_role["cost_critic"], "cost", ppo),
    )
    specs = {
        "rollout": RoleSpec("rollout", policy, data, config.seed, engine=config.engine),
        "policy": RoleSpec("policy", policy, data, *trained),
        "reference": RoleSpec("reference", policy, data, train=frozen),
        "reward": RoleSpec("reward", reward, data, train=frozen),
        "cost": RoleSpec("cost", cost, data, train=frozen),
        "reward_critic": RoleSpec("reward_critic", reward, data, *critic),
        "cost_critic": RoleSpec("cost_critic", cost, data, *critic),
    }
    created = [getattr(roles, role).create(spec) for role, spec in specs.items()]
    for pending in created:
        pending.result(config.timeouts.start)
    return roles


def _dismiss(roles: Roles, timeout: float) -> None:
    """Free every role; the rollout engine stays, since starting one dominates."""
    scored = (roles.policy, roles.reference, roles.reward, roles.cost)
    for role in (*scored, roles.reward_critic, roles.cost_critic):
        assert isinstance(role, RemoteRole)
        role.drop().result(timeout)

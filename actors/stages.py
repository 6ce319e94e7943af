"""One function per kind of stage: places the roles, runs the driver, fills a folder."""

from __future__ import annotations

import json
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
    RemoteRollout,
    RemoteScorer,
    ScorerLearner,
    SftLearner,
)
from actors.recipe import Context, StageFunction
from rlsys.batch import PromptCursor, Rollouts, SampleRequest, Scores
from rlsys.checkpoint import save_checkpoint
from rlsys.config.schema import EvaluateStage, SafeRlhfStage, ScorerStage, SftStage, TrainConfig
from rlsys.drivers.safe_rlhf import safe_rlhf, sync_weights
from rlsys.drivers.safe_rlhf_state import SafeRlhfRun, SafeRlhfState
from rlsys.drivers.scorers import scorer_quality, threshold_from_budget
from rlsys.drivers.sft import train
from rlsys.engines.workbench import RoleSpec, check_same_processor
from rlsys.errors import ConfigError
from rlsys.evaluation.answers import Answer, judge_answer, sample_rows
from rlsys.evaluation.stats import save_evaluation, tabulate
from rlsys.models.load import load_processor
from rlsys.models.tiny import build_tiny_vlm
from rlsys.roles import Metrics, Pending, Roles, as_completed

LOG_EVERY = 5  # optimiser steps between two rows of metrics.jsonl in supervised stages


def run_sft(context: Context, name: str, stage: SftStage, folder: Path) -> dict[str, Any]:
    """Supervised fine-tuning of the policy."""
    limits, training = context.config.timeouts, context.data.training
    model = str(folder / "init")
    if stage.init == "tiny":
        rows = [row for records in training.values() for row in records.rows]
        texts = [text for r in rows for text in (r.question, *r.responses)]
        build_tiny_vlm(Path(model), texts, stage.tiny, context.config.seed)
    else:
        model = context.folder(stage.init)
    learner = SftLearner(context.cluster.by_role["policy"], stage.target)
    spec = RoleSpec(
        "policy",
        model,
        context.slice(stage.split),
        context.config.seed,
        stage.train,
        stage.optim,
        stage.steps,
    )
    learner.create(spec).result(limits.start)
    last = _train(context, name, stage, learner, len(training[stage.split]))
    learner.save(str(folder)).result(limits.call)
    learner.drop().result(limits.call)
    return last


def run_scorer(context: Context, name: str, stage: ScorerStage, folder: Path) -> dict[str, Any]:
    """A reward or cost model from preference pairs, measured on the evaluation split."""
    limits, config = context.config.timeouts, context.config
    learner = ScorerLearner(context.cluster.by_role[stage.kind], stage)
    model = context.folder(stage.init)
    spec = RoleSpec(
        "scorer_trainer",
        model,
        context.slice("train"),
        config.seed,
        stage.train,
        stage.optim,
        stage.steps,
    )
    learner.create(spec).result(limits.start)
    _train(context, name, stage, learner, len(context.data.train))
    learner.save(str(folder)).result(limits.call)
    held_out = RoleSpec(stage.kind, str(folder), context.slice("evaluation"), train=stage.train)
    learner.create(held_out).result(limits.start)
    evaluation = context.data.evaluation
    scores = learner.score_pairs(list(range(len(evaluation)))).result(limits.call)
    learner.drop().result(limits.call)
    quality = scorer_quality(stage.kind, scores, evaluation)
    context.display.say("    held out: " + note(quality, *quality))
    return dict(quality)


def _train(
    context: Context,
    name: str,
    stage: SftStage | ScorerStage,
    learner: SftLearner | ScorerLearner,
    rows: int,
) -> Metrics:
    cursor = PromptCursor(rows, context.config.seed)
    last: Metrics = {}
    with context.display.bar(name, stage.steps) as bar:

        def report(step: int, metrics: Metrics) -> None:
            last.update(metrics)
            if step % LOG_EVERY == 0 or step == stage.steps:
                context.log(name, stage.kind, step, metrics)
            bar.advance(note(metrics, "loss", "accuracy"))

        train(
            learner,
            cursor,
            steps=stage.steps,
            batch=stage.batch,
            timeout=context.config.timeouts.call,
            report=report,
        )
    return last


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
        PromptCursor(len(context.data.train), config.seed),
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
    spec = RoleSpec("cost", context.folder(stage.cost), context.slice("validation"))
    scorer.create(spec).result(limits.start)
    rows = list(range(len(context.data.validation)))
    scores = scorer.score_pairs(rows).result(limits.call)
    calibration = threshold_from_budget(scores, context.data.validation, stage.lagrange.budget)
    context.display.say("    calibrated: " + note(calibration, *calibration))
    return calibration["threshold"], calibration


def _cast(context: Context, stage: SafeRlhfStage) -> Roles:
    """All seven roles, built at once on the groups the recipe places them on."""
    config, ppo = context.config, stage.ppo
    by_role = context.cluster.by_role
    policy, reward, cost = map(context.folder, (stage.policy, stage.reward, stage.cost))
    check_same_processor({"policy": policy, "reward": reward, "cost": cost})
    data, transport = context.slice("train"), config.engine.transport
    steps = stage.iterations * ppo.epochs * -(-ppo.prompts * ppo.samples // ppo.minibatch)
    frozen = TrainConfig(dtype=stage.train.dtype, micro_batch_tokens=stage.train.micro_batch_tokens)
    trained = (config.seed, stage.train, stage.optim, steps)
    critic = (config.seed, stage.critic_train, stage.critic_optim, steps)
    roles = Roles(
        rollout=_rollout(context, ppo.max_new_tokens, ppo.temperature),
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


def _rollout(context: Context, max_new_tokens: int, temperature: float) -> RemoteRollout:
    return RemoteRollout(
        context.cluster.by_role["rollout"],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        chunk_prompts=context.config.engine.chunk_prompts,
    )


def _dismiss(roles: Roles, timeout: float) -> None:
    """Free every role; the rollout engine stays, since starting one dominates."""
    scored = (roles.policy, roles.reference, roles.reward, roles.cost)
    for role in (*scored, roles.reward_critic, roles.cost_critic):
        assert isinstance(role, RemoteRole)
        role.drop().result(timeout)


def run_evaluate(context: Context, name: str, stage: EvaluateStage, folder: Path) -> dict[str, Any]:
    """Greedy answers of every policy to the same held-out prompts, judged and tabulated."""
    records = context.data.evaluation
    count = min(stage.limit or len(records), len(records))
    (folder / "images").mkdir()
    scorer = None if context.data.oracle else _cost_judge(context, name, stage)
    tables, samples = {}, []
    with context.display.bar(name, count * len(stage.policies)) as bar:
        for version, (policy, source) in enumerate(stage.policies.items()):
            chunks = _greedy(context, stage, context.folder(source), version, count)
            tokenizer = load_processor(context.folder(source)).tokenizer
            answers: list[Answer] = []
            for chunk in as_completed(chunks, context.config.timeouts.call):
                answers += _answers(context, scorer, tokenizer, chunk)
                bar.advance(policy, by=len(chunk))
            answers.sort(key=lambda answer: answer.record.id)
            judged = [judge_answer(answer, context.data.oracle) for answer in answers]
            tables[policy] = tabulate([outcome for outcome, _ in judged])
            samples += sample_rows(policy, answers, judged, folder / "images")
    save_evaluation(folder / "evaluation.json", tables)
    judged_by = "the cost model's sign" if context.data.oracle is None else "the data's own oracle"
    meta = {"judged_by": judged_by, "prompts": count}
    (folder / "evaluation_meta.json").write_text(json.dumps(meta))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return {"prompts": count}


def _greedy(
    context: Context, stage: EvaluateStage, model: str, version: int, count: int
) -> list[Pending[Rollouts]]:
    config, limits = context.config, context.config.timeouts
    rollout = _rollout(context, stage.max_new_tokens, 1.0)
    spec = RoleSpec("rollout", model, context.slice("evaluation"), engine=config.engine)
    rollout.create(spec).result(limits.start)
    rollout.load_checkpoint(model, version).result(limits.sync)
    return rollout.generate([SampleRequest(i, 0, 0) for i in range(count)], greedy=True)


def _cost_judge(context: Context, name: str, stage: EvaluateStage) -> RemoteScorer:
    """The cost model, for data without an oracle. Raises: ConfigError when none is named."""
    if not stage.cost:
        raise ConfigError(
            f"stages.{name}.cost: {context.config.data.source} has no oracle; "
            "name the cost model that judges its answers"
        )
    scorer = RemoteScorer(context.cluster.by_role["cost"], "cost")
    spec = RoleSpec("cost", context.folder(stage.cost), context.slice("evaluation"))
    scorer.create(spec).result(context.config.timeouts.start)
    return scorer


def _answers(
    context: Context, scorer: RemoteScorer | None, tokenizer: Any, chunk: Rollouts
) -> list[Answer]:
    """Decoded answers of a chunk, with costs where a cost model judges."""
    costs: list[float | None] = [None] * len(chunk)
    if scorer is not None:
        costs = scorer.score(chunk).result(context.config.timeouts.call).tolist()
    rows = zip(chunk.prompt_index.tolist(), chunk.response_ids, chunk.lengths, costs, strict=True)
    return [
        Answer(
            context.data.evaluation[index],
            tokenizer.decode(ids[:length], skip_special_tokens=True).strip(),
            cost,
        )
        for index, ids, length, cost in rows
    ]


RUNNERS: dict[str, StageFunction] = {
    "sft": run_sft,
    "reward": run_scorer,
    "cost": run_scorer,
    "safe_rlhf": run_safe_rlhf,
    "evaluate": run_evaluate,
}

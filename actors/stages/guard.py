"""The guard: trained and measured, then put behind a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.display import note
from actors.proxies import GuardLearner, RemoteGuard
from actors.recipe import Context
from actors.stages.evaluate import Examined, Examiner, prompts_of
from actors.stages.rollout import rollout_of
from actors.stages.training import run_training, trained_spec
from rlsys.config.stages import FilterStage, GuardedStage, GuardStage
from rlsys.data.slice import RowKind
from rlsys.drivers.guarded import Answers, GuardedRun, guarded_generation
from rlsys.engines.workbench import RoleSpec
from rlsys.guard.decision import moderations
from rlsys.guard.flags import Flags, save_flags
from rlsys.guard.quality import guard_quality
from rlsys.models.load import load_processor
from rlsys.roles import Metrics

FILTER_ROWS = 400  # rows per call, so that one call stays well inside its deadline


def run_guard(context: Context, name: str, stage: GuardStage, folder: Path) -> dict[str, Any]:
    """A moderation model from labelled answers, measured on the evaluation split."""
    limits = context.config.timeouts
    learner = GuardLearner(context.cluster.by_role["guard"], "guard")
    data, evaluation = context.data, context.data.pairs("evaluation")
    pairs = data.slice("train", RowKind.PAIRS)
    spec = trained_spec(context, "guard_trainer", context.folder(stage.init), pairs, stage)
    learner.create(spec).result(limits.start)
    run_training(context, name, stage, learner, range(len(data.pairs("train"))))
    learner.save(str(folder)).result(limits.call)
    held_out_pairs = data.slice("evaluation", RowKind.PAIRS)
    held_out = RoleSpec("guard", str(folder), held_out_pairs, train=stage.train)
    learner.create(held_out).result(limits.start)
    outputs = learner.moderate_rows(list(range(len(evaluation)))).result(limits.call)
    learner.drop().result(limits.call)
    quality = guard_quality(outputs, evaluation)
    context.display.say("    held out: " + note(quality, *quality))
    return dict(quality)


def run_filter(context: Context, name: str, stage: FilterStage, folder: Path) -> dict[str, Any]:
    """What the guard says about both responses of every row of a training split."""
    limits, records = context.config.timeouts, context.data.pairs(stage.split)
    guard = GuardLearner(context.cluster.by_role["guard"], "guard")
    data = context.data.slice(stage.split, RowKind.PAIRS)
    spec = RoleSpec("guard", context.folder(stage.guard), data)
    guard.create(spec).result(limits.start)
    flags: Flags = {}
    with context.display.bar(name, len(records)) as bar:
        for start in range(0, len(records), FILTER_ROWS):
            rows = list(range(start, min(start + FILTER_ROWS, len(records))))
            outputs = guard.moderate_rows(rows).result(limits.call)
            flagged = [m.level != "none" for m in moderations(outputs, threshold=stage.threshold)]
            for place, row in enumerate(rows):  # three items a row; the third is the bare prompt
                flags[records[row].id] = (flagged[3 * place], flagged[3 * place + 1])
            bar.advance("", by=len(rows))
    guard.drop().result(limits.call)
    save_flags(folder, flags)
    share = sum(first + second for first, second in flags.values()) / (2 * len(flags))
    context.display.say(f"    flagged {share:.1%} of {2 * len(flags)} responses")
    return {"rows": len(flags), "flagged": share}


def run_guarded(context: Context, name: str, stage: GuardedStage, folder: Path) -> dict[str, Any]:
    """A policy behind the guard: what its answers are after every round, and with the refusal."""
    config, model = context.config, context.folder(stage.policy)
    examiner = Examiner(context, name, stage.cost)
    rollout = rollout_of(context, model, 0, stage.max_new_tokens, stage.temperature)
    guard = RemoteGuard(context.cluster.by_role["guard"], stage.threshold)
    data = context.data.slice("evaluation", RowKind.PROMPTS)
    spec = RoleSpec("guard", context.folder(stage.guard), data)
    guard.create(spec).result(config.timeouts.start)
    tokenizer = load_processor(model).tokenizer
    examined: list[Examined] = []

    def texts(answers: Answers, *, refuse: bool = False) -> dict[int, str]:
        return {
            prompt: stage.refusal
            if answer.refused or (refuse and answer.action == "regenerate")
            else tokenizer.decode(answer.response_ids, skip_special_tokens=True).strip()
            for prompt, answer in answers.items()
        }

    with context.display.bar(name, stage.rounds + 1) as bar:

        def report(number: int, statistics: Metrics, answers: Answers) -> None:
            examined.append(examiner.examine(texts(answers)))
            rates = {
                f"{part}/{metric}": cell[part]
                for metric, cell in examined[-1].table["all"].items()
                for part in ("rate", "low", "high")
                if cell
            }
            context.log(name, stage.kind, number, statistics | rates)
            bar.advance(note(statistics | rates, "flagged", "regenerated", "rate/unsafe"))

        run = GuardedRun(
            stage.rounds,
            stage.candidates,
            stage.hint,
            stage.actions,
            config.seed,
            config.timeouts.call,
        )
        final = guarded_generation(
            rollout, guard, range(prompts_of(context, stage.limit)), run, report
        )
    guard.drop().result(config.timeouts.call)
    refused = examiner.examine(texts(final, refuse=True))
    examiner.save(folder, {name: examined[-1], f"{name} + refusal": refused})
    flagged = [sum(a.action == "regenerate" for a in final.values()) / len(final)]
    return {"prompts": len(final), "left_flagged": flagged[0]}

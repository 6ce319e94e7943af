"""``guard``: a moderation model from labelled answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys.config.stages import GuardStage
from rlsys.display import note
from rlsys.guard.quality import guard_quality
from rlsys.roles.guard import GuardHandle, GuardSpec, GuardTrainerHandle, GuardTrainerSpec
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.supervised import run_supervised


def run_guard(context: Context, name: str, stage: GuardStage, folder: Path) -> Result:
    """A guard, measured on the evaluation split."""
    config, limits = context.config, context.config.timeouts
    learner = GuardTrainerHandle(context.group("guard"))
    training = context.training(stage.train, stage.optim, stage.steps)
    model = context.folder(stage.init)
    spec = GuardTrainerSpec(model, context.slice("train"), config.dtype, training)
    learner.create(spec).result(limits.start)
    rows = range(len(context.data.train))
    run_supervised(context, name, stage, folder, learner, learner, rows)
    learner.save(folder).result(limits.call)
    guard = GuardHandle(context.group("guard"))
    budget = stage.train.micro_batch_tokens
    held_out = GuardSpec(str(folder), context.slice("evaluation"), config.dtype, budget)
    guard.create(held_out).result(limits.start)
    evaluation = context.data.evaluation
    outputs = guard.moderate_rows(range(len(evaluation))).result(limits.call)
    guard.drop().result(limits.call)
    quality = guard_quality(outputs, evaluation)
    context.display.say("    held out: " + note(quality, *quality))
    return dict(quality)


def _roles(stage: GuardStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return ("guard",)


GUARD = StageKind("guard", GuardStage, run_guard, _roles, makes="guard", trains=True)

"""``guard``: trains a moderation model on labelled answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.config.keys import key
from rlsys.data.prepare import Read
from rlsys.data.slice import RowKind
from rlsys.display import note
from rlsys.guard.quality import guard_quality
from rlsys.roles.guard import ROLE, GuardHandle, GuardSpec, GuardTrainerHandle, GuardTrainerSpec
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.supervised import MeasuredConfig, run_supervised


@dataclass
class GuardStage(MeasuredConfig):
    """A moderation model: unsafe, severity 0-3, category; for answers and for bare prompts."""

    kind: str = key("guard", "Kind of stage.", choices=("guard",))
    batch: int = key(32, "Rows per step; each has three items: two answers and the prompt.", ge=1)


def run_guard(context: Context, name: str, stage: GuardStage, folder: Path) -> Result:
    """A guard, measured on its held-out split."""
    config, limits = context.config, context.config.timeouts
    learner = GuardTrainerHandle(context.group(ROLE.name))
    rows = range(len(context.data.pairs(stage.split)))
    training = context.training(stage.train, stage.optim, stage.steps_on(len(rows)))
    model = context.folder(stage.init)
    spec = GuardTrainerSpec(
        model, context.data.slice(stage.split, RowKind.PAIRS), config.dtype, training
    )
    learner.create(spec).result(limits.start)
    run_supervised(context, name, stage, folder, learner, learner, rows)
    learner.save(folder).result(limits.call)
    guard = GuardHandle(context.group(ROLE.name))
    token_budget = stage.train.micro_batch_tokens
    held_out = GuardSpec(
        str(folder), context.data.slice(stage.held_out, RowKind.PAIRS), config.dtype, token_budget
    )
    guard.create(held_out).result(limits.start)
    records = context.data.pairs(stage.held_out)
    outputs = guard.moderate_rows(range(len(records))).result(limits.call)
    guard.drop().result(limits.call)
    quality = guard_quality(outputs, records)
    context.display.message("    held out: " + note(quality, *quality))
    return dict(quality)


def _roles(stage: GuardStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (ROLE.name,)


def _reads(stage: GuardStage) -> Sequence[Read]:
    return [
        Read(stage.split, RowKind.PAIRS, learned=True),
        Read(stage.held_out, RowKind.PAIRS, held_out=True),
    ]


GUARD = StageKind("guard", GuardStage, run_guard, _roles, makes="guard", trains=True, reads=_reads)

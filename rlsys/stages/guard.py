"""``guard``: trains a moderation model on labelled answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from rlsys.config.keys import key
from rlsys.config.schema import (
    OptimConfig,
    TrainConfig,
)
from rlsys.data.prepare import EVALUATION_PAIRS, TRAIN_PAIRS, Read
from rlsys.data.slice import RowKind
from rlsys.display import note
from rlsys.errors import ConfigError
from rlsys.guard.quality import guard_quality
from rlsys.roles.guard import GuardHandle, GuardSpec, GuardTrainerHandle, GuardTrainerSpec
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.supervised import run_supervised


@dataclass
class GuardStage:
    """A moderation model: unsafe, severity 0-3, category; for answers and for bare prompts."""

    kind: str = key("guard", "Kind of stage.", choices=("guard",))
    init: str = key(MISSING, "The policy stage or folder that initialises its trunk.", ref="policy")
    steps: int = key(MISSING, "Optimiser steps.", ge=1)
    checkpoint_every: int = key(
        200,
        "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none.",
        ge=0,
        affects_result=False,
    )
    batch: int = key(32, "Rows per step; each has three items: two answers and the prompt.", ge=1)
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the guard trains.")

    def check(self) -> None:
        if self.train.lora_rank:
            raise ConfigError("train.lora_rank: adapters are for the policy")


def run_guard(context: Context, name: str, stage: GuardStage, folder: Path) -> Result:
    """A guard, measured on the evaluation split."""
    config, limits = context.config, context.config.timeouts
    learner = GuardTrainerHandle(context.group("guard"))
    training = context.training(stage.train, stage.optim, stage.steps)
    model = context.folder(stage.init)
    spec = GuardTrainerSpec(
        model, context.data.slice("train", RowKind.PAIRS), config.dtype, training
    )
    learner.create(spec).result(limits.start)
    rows = range(len(context.data.pairs("train")))
    run_supervised(context, name, stage, folder, learner, learner, rows)
    learner.save(folder).result(limits.call)
    guard = GuardHandle(context.group("guard"))
    budget = stage.train.micro_batch_tokens
    held_out = GuardSpec(
        str(folder), context.data.slice("evaluation", RowKind.PAIRS), config.dtype, budget
    )
    guard.create(held_out).result(limits.start)
    evaluation = context.data.pairs("evaluation")
    outputs = guard.moderate_rows(range(len(evaluation))).result(limits.call)
    guard.drop().result(limits.call)
    quality = guard_quality(outputs, evaluation)
    context.display.message("    held out: " + note(quality, *quality))
    return dict(quality)


def _roles(stage: GuardStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return ("guard",)


def _reads(stage: GuardStage) -> Sequence[Read]:
    return [TRAIN_PAIRS, EVALUATION_PAIRS]


GUARD = StageKind("guard", GuardStage, run_guard, _roles, makes="guard", trains=True, reads=_reads)

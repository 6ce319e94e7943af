"""``reward`` and ``cost``: trains models with a scalar head on preference pairs."""

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
from rlsys.evaluation.scorers import scorer_quality
from rlsys.roles.scorer import (
    ScorerHandle,
    ScorerLoss,
    ScorerSpec,
    ScorerTrainerHandle,
    ScorerTrainerSpec,
)
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.supervised import run_supervised


@dataclass
class ScorerStage:
    """A reward model (kind reward) or a cost model (kind cost) that sees the image."""

    kind: str = key(MISSING, "Kind of stage.", choices=("reward", "cost"))
    init: str = key(MISSING, "The policy stage or folder that initialises its trunk.", ref="policy")
    steps: int = key(MISSING, "Optimiser steps.", ge=1)
    checkpoint_every: int = key(
        200,
        "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none.",
        ge=0,
        affects_result=False,
    )
    batch: int = key(64, "Pairs per step; all, if there are fewer.", ge=1)
    regularization: float = key(0.001, "Weight of the squared scores in the loss.", ge=0)
    sign_scale: float = key(
        1.0, "Cost only: weight of the sign terms against the ranking term.", ge=0
    )
    label_mode: str = key(
        "graded",
        "Cost only: labels of the sign terms.",
        choices=("graded", "graded_normalised", "sign"),
    )
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the model trains.")

    def check(self) -> None:
        if self.train.lora_rank:
            raise ConfigError("train.lora_rank: adapters are for the policy")


def run_scorer(context: Context, name: str, stage: ScorerStage, folder: Path) -> Result:
    """A reward or cost model, measured on the evaluation split."""
    config, limits = context.config, context.config.timeouts
    loss = ScorerLoss(stage.kind, stage.regularization, stage.sign_scale, stage.label_mode)
    learner = ScorerTrainerHandle(context.group(stage.kind), loss)
    training = context.training(stage.train, stage.optim, stage.steps)
    model = context.folder(stage.init)
    spec = ScorerTrainerSpec(
        model, context.data.slice("train", RowKind.PAIRS), config.dtype, training
    )
    learner.create(spec).result(limits.start)
    rows = range(len(context.data.pairs("train")))
    run_supervised(context, name, stage, folder, learner, learner, rows)
    learner.save(folder).result(limits.call)
    scorer = ScorerHandle(context.group(stage.kind), stage.kind)
    budget = stage.train.micro_batch_tokens
    held_out = ScorerSpec(
        str(folder), context.data.slice("evaluation", RowKind.PAIRS), config.dtype, budget
    )
    scorer.create(held_out).result(limits.start)
    evaluation = context.data.pairs("evaluation")
    scores = scorer.score_pairs(range(len(evaluation))).result(limits.call)
    scorer.drop().result(limits.call)
    quality = scorer_quality(stage.kind, scores, evaluation)
    context.display.message("    held out: " + note(quality, *quality))
    return dict(quality)


def _roles(stage: ScorerStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (stage.kind,)


def _reads(stage: ScorerStage) -> Sequence[Read]:
    return [TRAIN_PAIRS, EVALUATION_PAIRS]


REWARD = StageKind(
    "reward", ScorerStage, run_scorer, _roles, makes="reward", trains=True, reads=_reads
)
COST = StageKind("cost", ScorerStage, run_scorer, _roles, makes="cost", trains=True, reads=_reads)

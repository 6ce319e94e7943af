"""``reward`` and ``cost``: trains models with a scalar head on preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from rlsys.config.keys import key
from rlsys.data.prepare import Read
from rlsys.data.rows import TARGETS
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
from rlsys.stages.supervised import MeasuredConfig, run_supervised


@dataclass
class ScorerStage(MeasuredConfig):
    """A reward model (kind reward) or a cost model (kind cost) that sees the image."""

    kind: str = key(MISSING, "Kind of stage.", choices=("reward", "cost"))
    target: str = key(
        "more_helpful",
        "Reward only: which response of a pair is better; safer: the single-objective baseline.",
        choices=TARGETS,
    )
    max_pairs: int = key(0, "Pairs to train on, the first of the split; 0: all.", ge=0)
    regularization: float = key(0.001, "Weight of the squared scores in the loss.", ge=0)
    sign_scale: float = key(
        1.0, "Cost only: weight of the sign terms against the ranking term.", ge=0
    )
    label_mode: str = key(
        "graded",
        "Cost only: labels of the sign terms.",
        choices=("graded", "graded_normalised", "sign"),
    )

    def check(self) -> None:
        super().check()
        if self.kind == "cost" and self.target != "more_helpful":
            raise ConfigError("target: a cost model ranks by safety already; it is for kind reward")


def run_scorer(context: Context, name: str, stage: ScorerStage, folder: Path) -> Result:
    """A reward or cost model, measured on its held-out split."""
    config, limits = context.config, context.config.timeouts
    loss = ScorerLoss(
        stage.kind, stage.regularization, stage.sign_scale, stage.label_mode, stage.target
    )
    learner = ScorerTrainerHandle(context.group(stage.kind), loss)
    count = len(context.data.rows(stage.split, _kind(stage)))
    rows = range(min(stage.max_pairs or count, count))
    training = context.training(stage.train, stage.optim, stage.steps_on(len(rows)))
    model = context.folder(stage.init)
    spec = ScorerTrainerSpec(
        model,
        context.data.slice(stage.split, _kind(stage)),
        config.dtype,
        training,
        context.digest(stage.init),
    )
    learner.create(spec).result(limits.start)
    run_supervised(context, name, stage, folder, learner, learner, rows)
    learner.save(folder).result(limits.call)
    scorer = ScorerHandle(context.group(stage.kind), stage.kind)
    token_budget = stage.train.micro_batch_tokens
    held_out = ScorerSpec(
        str(folder), context.data.slice(stage.held_out, _kind(stage)), config.dtype, token_budget
    )
    scorer.create(held_out).result(limits.start)
    records = context.data.rows(stage.held_out, _kind(stage))
    scores = scorer.score_pairs(range(len(records))).result(limits.call)
    scorer.drop().result(limits.call)
    quality = scorer_quality(stage.kind, scores, records, stage.target)
    context.display.message("    held out: " + note(quality, *quality))
    return dict(quality)


def _roles(stage: ScorerStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (stage.kind,)


def _reads(stage: ScorerStage) -> Sequence[Read]:
    return [
        Read(stage.split, _kind(stage), learned=True),
        Read(stage.held_out, _kind(stage), held_out=True),
    ]


def _kind(stage: ScorerStage) -> RowKind:
    """A cost model learns from labels of safety, a reward model from a preference alone."""
    return RowKind.PAIRS if stage.kind == "cost" else RowKind.RANKED


REWARD = StageKind(
    "reward", ScorerStage, run_scorer, _roles, makes="reward", trains=True, reads=_reads
)
COST = StageKind("cost", ScorerStage, run_scorer, _roles, makes="cost", trains=True, reads=_reads)

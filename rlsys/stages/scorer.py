"""``reward`` and ``cost``: models with a scalar head, from preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys.config.stages import ScorerStage
from rlsys.display import note
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


def run_scorer(context: Context, name: str, stage: ScorerStage, folder: Path) -> Result:
    """A reward or cost model, measured on the evaluation split."""
    config, limits = context.config, context.config.timeouts
    loss = ScorerLoss(stage.kind, stage.regularization, stage.sign_scale, stage.label_mode)
    learner = ScorerTrainerHandle(context.group(stage.kind), loss)
    training = context.training(stage.train, stage.optim, stage.steps)
    model = context.folder(stage.init)
    spec = ScorerTrainerSpec(model, context.slice("train"), config.dtype, training)
    learner.create(spec).result(limits.start)
    rows = range(len(context.data.train))
    run_supervised(context, name, stage, folder, learner, learner, rows)
    learner.save(folder).result(limits.call)
    scorer = ScorerHandle(context.group(stage.kind), stage.kind)
    budget = stage.train.micro_batch_tokens
    held_out = ScorerSpec(str(folder), context.slice("evaluation"), config.dtype, budget)
    scorer.create(held_out).result(limits.start)
    evaluation = context.data.evaluation
    scores = scorer.score_pairs(range(len(evaluation))).result(limits.call)
    scorer.drop().result(limits.call)
    quality = scorer_quality(stage.kind, scores, evaluation)
    context.display.say("    held out: " + note(quality, *quality))
    return dict(quality)


def _roles(stage: ScorerStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (stage.kind,)


REWARD = StageKind("reward", ScorerStage, run_scorer, _roles, makes="reward", trains=True)
COST = StageKind("cost", ScorerStage, run_scorer, _roles, makes="cost", trains=True)

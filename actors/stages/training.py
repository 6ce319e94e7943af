"""Supervised stages: the policy, the reward model, the cost model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.display import note
from actors.proxies import DpoLearner, GuardLearner, ScorerLearner, SftLearner
from actors.recipe import Context
from rlsys.batch import PromptCursor
from rlsys.config.stages import DpoStage, GuardStage, ScorerStage, SftStage
from rlsys.data.collate import labelled_pairs
from rlsys.data.rows import Demonstration, Rows, ids_digest, joined, leaked_ids
from rlsys.data.slice import DataSlice, RowKind
from rlsys.data.source import demonstrations
from rlsys.drivers.dpo import dpo
from rlsys.drivers.scorers import scorer_quality
from rlsys.drivers.sft import train
from rlsys.engines.workbench import RoleSpec
from rlsys.guard.flags import load_flags, passed_rows
from rlsys.models.load import load_processor
from rlsys.models.tiny import build_tiny_vlm
from rlsys.roles import Metrics, Pending

CONVERSATIONS = "conversations.jsonl"  # in the folder of an observe stage
LOG_EVERY = 5  # optimiser steps between two rows of metrics.jsonl in supervised stages


AnyTraining = SftStage | DpoStage | ScorerStage | GuardStage


def trained_spec(
    context: Context, kind: str, model: str, data: DataSlice, stage: AnyTraining
) -> RoleSpec:
    """A trained role as its stage wants it."""
    return RoleSpec(
        kind,
        model,
        data,
        context.config.seed,
        stage.train,
        stage.optim,
        stage.steps,
    )


def run_sft(context: Context, name: str, stage: SftStage, folder: Path) -> dict[str, Any]:
    """Supervised fine-tuning of the policy."""
    limits = context.config.timeouts
    data, records = _demonstrated(context, stage)
    model = str(folder / "init")
    if stage.init == "tiny":
        own = len(context.data.demonstrations(stage.split, stage.target)) if stage.split else 0
        beside = [text for row in records.rows[own:] for text in row.texts]
        texts = [*context.data.texts(), *beside]
        build_tiny_vlm(Path(model), texts, stage.tiny, context.config.seed)
    else:
        model = context.folder(stage.init)
    learner = SftLearner(context.cluster.by_role["policy"], stage)
    spec = trained_spec(context, "policy", model, data, stage)
    learner.create(spec).result(limits.start)
    rows: Sequence[int] = range(len(records))
    if stage.filter:
        flags = load_flags(Path(context.folder(stage.filter)))
        kept = passed_rows(context.data.pairs(stage.split), flags, stage.target)
        context.display.say(f"    the filter passed {len(kept)} of {len(rows)} rows")
        rows = kept
    last = run_training(context, name, stage, learner, rows)
    learner.save(str(folder)).result(limits.call)
    learner.drop().result(limits.call)
    return last


def _demonstrated(context: Context, stage: SftStage) -> tuple[DataSlice, Rows[Demonstration]]:
    """What is imitated: the rows of the splits, then those of the conversations."""
    parts = [context.data.demonstrations(stage.split, stage.target)] if stage.split else []
    data = context.data.slice(stage.split, RowKind.DEMONSTRATIONS, stage.target)
    if stage.conversations:
        path = Path(context.folder(stage.conversations))
        path = path / CONVERSATIONS if path.is_dir() else path
        found = demonstrations(path)
        held_out = context.data.held_out
        leaked = leaked_ids(found, held_out) if held_out is not None else frozenset()
        kept = Rows([r for r in found.rows if r.id not in leaked], found.rejected)
        if leaked or found.rejected:
            context.display.say(
                f"    {path.name}: {len(kept)} turns; left out: {dict(found.rejected)}, "
                f"{len(leaked)} with an image of the evaluation split"
            )
        parts.append(kept)
        data = replace(data, conversations=str(path), leaked=leaked)
    records = joined(parts)
    return replace(data, ids=ids_digest(records)), records


def run_dpo(context: Context, name: str, stage: DpoStage, folder: Path) -> dict[str, Any]:
    """The policy from labelled pairs, by direct preference optimisation."""
    limits, records = context.config.timeouts, context.data.pairs("train")
    model = context.folder(stage.init)
    learner = DpoLearner(context.cluster.by_role["policy"], "policy")
    data = context.data.slice("train", RowKind.PAIRS)
    spec = trained_spec(context, "policy", model, data, stage)
    learner.create(spec).result(limits.start)
    cursor = PromptCursor(len(records), context.config.seed)
    batches = [cursor.next(min(stage.batch, cursor.count)) for _ in range(stage.steps)]
    used = sorted({row for batch in batches for row in batch})
    place = {row: number for number, row in enumerate(used)}
    last: Metrics = {}
    times: list[float] = []
    with context.display.bar(name, stage.steps) as bar:

        def report(step: int, metrics: Metrics) -> None:
            last.update(metrics)
            times.append(time.perf_counter())
            if step % LOG_EVERY == 0 or step == stage.steps:
                context.log(name, stage.kind, step, metrics)
            bar.advance(note(metrics, "loss", "accuracy", "margin"))

        dpo(
            learner,
            labelled_pairs(records, used, stage.target, load_processor(model).tokenizer),
            [[place[row] for row in batch] for batch in batches],
            beta=stage.beta,
            timeout=limits.call,
            report=report,
        )
    learner.save(str(folder)).result(limits.call)
    learner.drop().result(limits.call)
    if len(times) > 1:
        seconds = (times[-1] - times[0]) / (len(times) - 1)
        last["pairs_per_s"] = len(batches[0]) / seconds
    return last


def run_scorer(context: Context, name: str, stage: ScorerStage, folder: Path) -> dict[str, Any]:
    """A reward or cost model from preference pairs, measured on the evaluation split."""
    limits = context.config.timeouts
    learner = ScorerLearner(context.cluster.by_role[stage.kind], stage)
    model = context.folder(stage.init)
    pairs = context.data.slice("train", RowKind.PAIRS)
    spec = trained_spec(context, "scorer_trainer", model, pairs, stage)
    learner.create(spec).result(limits.start)
    run_training(context, name, stage, learner, range(len(context.data.pairs("train"))))
    learner.save(str(folder)).result(limits.call)
    held_out_pairs = context.data.slice("evaluation", RowKind.PAIRS)
    held_out = RoleSpec(stage.kind, str(folder), held_out_pairs, train=stage.train)
    learner.create(held_out).result(limits.start)
    evaluation = context.data.pairs("evaluation")
    scores = learner.score_pairs(list(range(len(evaluation)))).result(limits.call)
    learner.drop().result(limits.call)
    quality = scorer_quality(stage.kind, scores, evaluation)
    context.display.say("    held out: " + note(quality, *quality))
    return dict(quality)


@dataclass(frozen=True)
class _On:
    """A learner that is given places in ``rows``."""

    learner: SftLearner | ScorerLearner | GuardLearner
    rows: Sequence[int]

    def step(self, places: list[int]) -> Pending[Metrics]:
        return self.learner.step([self.rows[place] for place in places])


def run_training(
    context: Context,
    name: str,
    stage: SftStage | ScorerStage | GuardStage,
    learner: SftLearner | ScorerLearner | GuardLearner,
    rows: Sequence[int],
) -> Metrics:
    """Steps on batches of these dataset rows."""
    cursor = PromptCursor(len(rows), context.config.seed)
    last: Metrics = {}
    with context.display.bar(name, stage.steps) as bar:

        def report(step: int, metrics: Metrics) -> None:
            last.update(metrics)
            if step % LOG_EVERY == 0 or step == stage.steps:
                context.log(name, stage.kind, step, metrics)
            bar.advance(note(metrics, "loss", "accuracy"))

        train(
            _On(learner, rows),
            cursor,
            steps=stage.steps,
            batch=stage.batch,
            timeout=context.config.timeouts.call,
            report=report,
        )
    return last

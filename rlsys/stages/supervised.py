"""The resumable loop of every stage that takes optimiser steps on dataset rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import MISSING

from rlsys.batch import PromptCursor
from rlsys.config.keys import key
from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.display import note
from rlsys.drivers.sft import train
from rlsys.errors import ConfigError
from rlsys.roles.trained import TrainedHandle
from rlsys.runtime.pending import Metrics, Pending
from rlsys.stages.checkpoints import StageCheckpoints
from rlsys.stages.context import Context

LOG_EVERY = 5  # optimiser steps between two rows of metrics.jsonl


@dataclass
class SupervisedConfig:
    """Keys of every stage that trains a model on dataset rows."""

    kind: str = key(MISSING, "Kind of stage.")
    split: str = key("train", "A split, or several joined by a plus sign.")
    init: str = key(MISSING, "The policy to start from: a stage or a folder.", ref="policy")
    steps: int = key(0, "Optimiser steps; 0: as many as `epochs` need.", ge=0)
    epochs: float = key(0.0, "Passes over the rows, instead of steps.", ge=0)
    checkpoint_every: int = key(
        200,
        "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none.",
        ge=0,
        affects_result=False,
    )
    batch: int = key(64, "Rows per step; all, if there are fewer.", ge=1)
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the model trains.", trains=("init",))

    def check(self) -> None:
        if bool(self.steps) == bool(self.epochs):
            raise ConfigError("steps: give either steps or epochs")

    def steps_on(self, rows: int) -> int:
        """Optimiser steps on as many rows."""
        return self.steps or steps_of(self.epochs, rows, self.batch)


@dataclass
class MeasuredConfig(SupervisedConfig):
    """Keys of every stage that trains a model and measures it on a split."""

    held_out: str = key("evaluation", "Split, or several, that its quality is measured on.")


class Learner(Protocol):
    """Takes an optimiser step on dataset rows."""

    def step(self, rows: Sequence[int]) -> Pending[Metrics]: ...


def run_supervised(
    context: Context,
    name: str,
    stage: SupervisedConfig,
    folder: Path,
    role: TrainedHandle[Any],
    learner: Learner,
    rows: Sequence[int],
) -> Metrics:
    """Steps on batches of these dataset rows, from the last checkpoint in ``folder``.

    Returns: the metrics of the last step, and ``steps_per_s``.
    """
    steps = stage.steps_on(len(rows))
    checkpoints = StageCheckpoints(context, name, folder, {role.role: role})
    state = checkpoints.restore() or {"step": 0, "cursor": 0, "last": {}}
    cursor = PromptCursor(len(rows), context.config.seed, state["cursor"])
    last: Metrics = dict(state["last"])
    times: list[float] = []
    with context.display.bar(name, steps) as bar:
        bar.advance("", by=state["step"])

        def report(step: int, metrics: Metrics) -> None:
            last.update(metrics)
            times.append(time.perf_counter())
            if step % LOG_EVERY == 0 or step == steps:
                context.log(name, stage.kind, step, metrics)
            if checkpoint_due(step, steps, stage.checkpoint_every):
                checkpoints.save(step, {"step": step, "cursor": cursor.position, "last": last})
            bar.advance(note(metrics, "loss", "accuracy", "margin"))

        train(
            lambda indices: learner.step([rows[index] for index in indices]),
            cursor,
            start=state["step"],
            steps=steps,
            batch=stage.batch,
            timeout=context.config.timeouts.call,
            report=report,
        )
    if len(times) > 1:
        last["steps_per_s"] = (len(times) - 1) / (times[-1] - times[0])
    return last


def steps_of(epochs: float, rows: int, batch: int) -> int:
    """Steps of ``batch`` rows (all, where there are fewer) until every row was in ``epochs``."""
    return math.ceil(epochs * rows / min(batch, rows))


def checkpoint_due(step: int, steps: int, every: int) -> bool:
    """Every ``every`` steps and after the last one, since a run may stop after it; 0: never."""
    return bool(every) and (step % every == 0 or step == steps)

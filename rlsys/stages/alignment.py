"""Shared by the stages that align a policy under a cost constraint."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Protocol

from rlsys.config.schema import GapConfig, LagrangeConfig, SamplingConfig
from rlsys.data.prepare import Datasets, Read
from rlsys.data.slice import RowKind
from rlsys.display import Bar, note
from rlsys.drivers.cached_rollout import CachedRollout
from rlsys.drivers.constrained import ConstrainedState
from rlsys.errors import ConfigError
from rlsys.evaluation.scorers import threshold_from_unsafe_rate
from rlsys.roles.scorer import ScorerHandle, ScorerSpec
from rlsys.runtime.pending import Metrics
from rlsys.stages.checkpoints import StageCheckpoints
from rlsys.stages.context import Context
from rlsys.stages.supervised import checkpoint_due


def cost_threshold(
    context: Context, cost: str, lagrange: LagrangeConfig, token_budget: int
) -> tuple[float, Metrics]:
    """d in the cost model's units, and what it was calibrated from: the number in the recipe, or
    the one that ``target_unsafe_rate`` stands for on the validation split.

    Args: cost: the cost model's stage or folder.
    """
    if lagrange.threshold != "auto":
        return float(lagrange.threshold), {}
    limits, records = context.config.timeouts, context.data.pairs("validation")
    scorer = ScorerHandle(context.group("cost"), "cost")
    data = context.data.slice("validation", RowKind.PAIRS)
    spec = ScorerSpec(context.folder(cost), data, context.config.dtype, token_budget)
    scorer.create(spec).result(limits.start)
    scores = scorer.score_pairs(range(len(records))).result(limits.call)
    calibration = threshold_from_unsafe_rate(scores, records, lagrange.target_unsafe_rate)
    context.display.message("    calibrated: " + note(calibration, *calibration))
    return calibration["threshold"], calibration


def calibration_reads(lagrange: LagrangeConfig) -> list[Read]:
    """The validation pairs, if the threshold is calibrated on them."""
    return [Read("validation", RowKind.PAIRS)] if lagrange.threshold == "auto" else []


def check_prompts(where: str, sampling: SamplingConfig, data: Datasets) -> None:
    """Raises: ConfigError where an iteration needs more prompts than there are."""
    rows = len(data.prompts("train"))
    if sampling.num_prompts > rows:
        raise ConfigError(
            f"{where}.num_prompts: {sampling.num_prompts} prompts per iteration, the train split "
            f"has {rows} usable rows"
        )


class AlignmentStage(Protocol):
    """The keys that ``IterationReport`` reads."""

    kind: str
    iterations: int
    checkpoint_every: int


@dataclass
class IterationReport:
    """Logs every iteration, warns of a large gap, writes the checkpoints that are due."""

    context: Context
    name: str
    stage: AlignmentStage
    checkpoints: StageCheckpoints
    rollout: CachedRollout
    gap: GapConfig
    bar: Bar
    history: list[Metrics] = field(default_factory=list)

    def __call__(self, state: ConstrainedState, metrics: Metrics, *_: object) -> None:
        done = state.iteration
        self.context.log(self.name, self.stage.kind, done, metrics)
        self.history.append(metrics)
        if metrics["gap/max"] > self.gap.warn:
            self.context.display.message(
                f"[yellow]warning[/yellow] iteration {done}: engine and trainer differ by "
                f"{metrics['gap/max']:.1e} nats (expected at most {self.gap.warn:.0e})"
            )
        if checkpoint_due(done, self.stage.iterations, self.stage.checkpoint_every):
            self.checkpoints.save(done, state.as_dict())
        if checkpoint_due(done, self.stage.iterations, self.stage.checkpoint_every or 1):
            self.rollout.evict(done)
        self.bar.advance(note(metrics, "reward", "cost", "lambda", "kl", "samples_per_s"))

    def steady_state(self) -> Metrics:
        """Medians over the later half of the iterations: samples per second, seconds by phase."""
        later = self.history[len(self.history) // 2 :]
        if not later:
            return {}
        names = ["samples_per_s", *(name for name in later[0] if name.startswith("time/"))]
        steady = {name: statistics.median(row[name] for row in later) for name in names}
        self.context.display.message("    steady state: " + note(steady, *steady))
        return steady

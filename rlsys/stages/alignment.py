"""Shared by the stages that align a policy under a cost constraint."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from omegaconf import MISSING

from rlsys.algorithms.calibration import Platt
from rlsys.config.engine import GapConfig
from rlsys.config.keys import key
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import FROZEN, OptimConfig, TrainConfig
from rlsys.config.updates import SamplingConfig
from rlsys.data.prepare import Datasets, Read
from rlsys.data.slice import RowKind
from rlsys.display import Bar, note
from rlsys.drivers.constrained import ConstrainedState
from rlsys.drivers.constraint import Constraint
from rlsys.drivers.gap import gap_warning
from rlsys.errors import ConfigError, DataError
from rlsys.evaluation.budget import end_metrics
from rlsys.evaluation.scorers import cost_calibration, count_labels
from rlsys.roles.scorer import COST, ScorerHandle, ScorerSpec
from rlsys.runtime.pending import Metrics
from rlsys.stages.cached_rollout import CachedRollout
from rlsys.stages.checkpoints import StageCheckpoints
from rlsys.stages.context import Context
from rlsys.stages.supervised import checkpoint_due, steps_of


@dataclass
class AlignmentConfig:
    """Keys of every stage that aligns a policy under a cost constraint."""

    kind: str = key(MISSING, "Kind of stage.")
    split: str = key("train", "Split of the prompts, or several joined by a plus sign.")
    policy: str = key(MISSING, "Start policy and reference: a stage or a folder.", ref="policy")
    reward: str = key(MISSING, "Reward model: a stage or a folder.", ref="reward")
    cost: str = key(MISSING, "Cost model: a stage or a folder.", ref="cost")
    iterations: int = key(0, "Iterations; 0: as many as `epochs` need.", ge=0)
    epochs: float = key(0.0, "Passes over the prompts, instead of iterations.", ge=0)
    lagrange: LagrangeConfig = key(LagrangeConfig(), "The multiplier.")
    gap: GapConfig = key(
        GapConfig(), "Bound of the engine-trainer log-probability gap.", affects_result=False
    )
    optim: OptimConfig = key(OptimConfig(), "Optimiser of the policy.")
    train: TrainConfig = key(TrainConfig(), "How the policy trains.", trains=("policy",))
    frozen: str = key(
        "whole",
        "Weights of reference, reward and cost model: whole on every rank; sharded over the ranks "
        "of their group (DeepSpeed ZeRO-3); offload: sharded, in the host's memory.",
        choices=FROZEN,
        affects_result=False,
    )
    checkpoint_every: int = key(
        10,
        "Iterations between the checkpoints a stopped run resumes from; 0: none.",
        ge=0,
        affects_result=False,
    )
    keep_checkpoints: int = key(2, "Newest checkpoints that are kept.", ge=1, affects_result=False)

    def check(self) -> None:
        if bool(self.iterations) == bool(self.epochs):
            raise ConfigError("iterations: give either iterations or epochs")

    def iterations_on(self, prompts: int, sampling: SamplingConfig) -> int:
        """Iterations on as many prompts."""
        return self.iterations or steps_of(self.epochs, prompts, sampling.num_prompts)


def cost_constraint(
    context: Context, cost: str, lagrange: LagrangeConfig, token_budget: int
) -> tuple[Constraint, Metrics]:
    """The constraint, and what it was calibrated from on the validation split, if it was.

    Args: cost: the cost model's stage or folder.
    """
    if lagrange.threshold != "auto":
        return Constraint(float(lagrange.threshold), lagrange.form), {}
    limits, records = context.config.timeouts, context.data.pairs("validation")
    scorer = ScorerHandle(context.group(COST.name), COST.name)
    data = context.data.slice("validation", RowKind.PAIRS)
    spec = ScorerSpec(context.folder(cost), data, context.config.dtype, token_budget)
    scorer.create(spec).result(limits.start)
    scores = scorer.score_pairs(range(len(records))).result(limits.call)
    calibration = cost_calibration(scores, records, lagrange.target_unsafe_rate)
    context.display.message("    calibrated: " + note(calibration, *calibration))
    platt = Platt(calibration["platt_slope"], calibration["platt_intercept"])
    threshold, budget = calibration["threshold"], calibration["budget"]
    sides = {side: calibration[f"cost_of_{side}"] for side in ("safe", "unsafe")}
    return Constraint(threshold, lagrange.form, budget, platt, **sides), calibration


def calibration_reads(lagrange: LagrangeConfig) -> list[Read]:
    """The validation pairs, if costs are calibrated on them."""
    return [Read("validation", RowKind.PAIRS)] if lagrange.threshold == "auto" else []


def check_calibration(name: str, lagrange: LagrangeConfig, data: Datasets) -> None:
    """Raises: ConfigError where costs are to be calibrated on too few answers of either label."""
    if lagrange.threshold == "auto":
        try:
            count_labels(data.pairs("validation"))
        except DataError as error:
            raise ConfigError(f"stages.{name}.{error}") from error


def check_prompts(where: str, split: str, sampling: SamplingConfig, data: Datasets) -> None:
    """Raises: ConfigError where an iteration needs more prompts than there are."""
    rows = len(data.prompts(split))
    if sampling.num_prompts > rows:
        raise ConfigError(
            f"{where}.num_prompts: {sampling.num_prompts} prompts per iteration, the split "
            f"{split} has {rows} usable rows"
        )


@dataclass
class IterationReport:
    """Logs every iteration, warns of a large gap, writes the checkpoints that are due. lag: by how
    many versions rollouts are older than the policy that trains on them.
    """

    context: Context
    name: str
    stage: AlignmentConfig
    checkpoints: StageCheckpoints
    rollout: CachedRollout
    bar: Bar
    iterations: int
    lag: int = 0
    history: list[Metrics] = field(default_factory=list)

    def __call__(self, state: ConstrainedState, metrics: Metrics, *_: object) -> None:
        done = state.iteration
        self.context.log(self.name, self.stage.kind, done, metrics)
        self.history.append(metrics)
        if warning := gap_warning(metrics, f"iteration {done}"):
            self.context.display.message(warning)
        if checkpoint_due(done, self.iterations, self.stage.checkpoint_every):
            self.checkpoints.save(done, state.as_dict())
        if checkpoint_due(done, self.iterations, self.stage.checkpoint_every or 1):
            self.rollout.evict(done - self.lag)
        self.bar.advance(
            note(metrics, "reward", "cost", "violation", "lambda", "kl", "samples_per_s")
        )

    def end_metrics(self) -> Metrics:
        """How the constraint stood at the end, by all iterations, those before a resume too."""
        return end_metrics([row for _, _, row in self.context.rows])

    def steady_state(self) -> Metrics:
        """Medians over the later half of the iterations: samples per second, seconds by phase."""
        later = self.history[len(self.history) // 2 :]
        if not later:
            return {}
        names = ["samples_per_s", *(name for name in later[0] if name.startswith("time/"))]
        steady = {name: statistics.median(row[name] for row in later) for name in names}
        self.context.display.message("    steady state: " + note(steady, *steady))
        return steady

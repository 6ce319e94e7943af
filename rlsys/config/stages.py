"""Every key of a recipe's stages. A string under a field is its doc."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from rlsys.config.rules import at_least, one_of, positive
from rlsys.config.schema import (
    LOSS_FORMS,
    AnsweringStage,
    GapConfig,
    LagrangeConfig,
    OptimConfig,
    PpoConfig,
    TinyConfig,
    TrainConfig,
)
from rlsys.errors import ConfigError
from rlsys.guard.levels import ACTIONS, LEVELS


@dataclass
class SftStage:
    """Supervised fine-tuning on one response of each pair."""

    kind: str = "sft"
    init: str = "tiny"
    "tiny (a small model made from scratch on the data's texts), an earlier stage, or a folder."
    tiny: TinyConfig = field(default_factory=TinyConfig)
    split: str = "train"
    "Rows to learn from: a split, or several joined by a plus sign; empty: conversations alone."
    conversations: str = ""
    "More rows: an observe stage, or a file in LLaVA's format. Every model turn is imitated."
    filter: str = ""
    "A filter stage on the same split: rows whose imitated response it flagged are left out."
    target: str = "more_helpful"
    "Which response to imitate: more_helpful or safer."
    loss_form: str = "token_mean"
    "token_mean (over all response tokens of the step), or sequence_mean: short ones count as much."
    steps: int = MISSING
    checkpoint_every: int = 200
    "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none."
    batch: int = 64
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch)
        at_least(0, checkpoint_every=self.checkpoint_every)
        one_of("target", self.target, ("more_helpful", "safer"))
        one_of("loss_form", self.loss_form, LOSS_FORMS)
        if not self.split and not self.conversations:
            raise ConfigError("split: name a split, or give conversations")
        if self.filter and self.conversations:
            raise ConfigError("filter: a filter knows the rows of a split, not conversations")


@dataclass
class DpoStage:
    """Direct preference optimisation on labelled pairs."""

    kind: str = "dpo"
    init: str = MISSING
    "The policy to start from, which is also the reference: a stage or a folder."
    target: str = "more_helpful"
    "Which response of a pair is the chosen one: more_helpful or safer."
    beta: float = 0.1
    steps: int = MISSING
    checkpoint_every: int = 200
    "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none."
    batch: int = 32
    "Pairs per step."
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch)
        at_least(0, checkpoint_every=self.checkpoint_every)
        positive(beta=self.beta)
        one_of("target", self.target, ("more_helpful", "safer"))


@dataclass
class ScorerStage:
    """A reward model (kind reward) or a cost model (kind cost) with pixels."""

    kind: str = MISSING
    init: str = MISSING
    "The policy stage or folder whose trunk it starts from."
    steps: int = MISSING
    checkpoint_every: int = 200
    "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none."
    batch: int = 64
    "Pairs per step."
    regularization: float = 0.001
    sign_scale: float = 1.0
    "Cost only: weight of the sign terms against the ranking term."
    label_mode: str = "graded"
    "Cost only: graded, graded_normalised or sign."
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch)
        at_least(0, checkpoint_every=self.checkpoint_every)
        if self.train.lora_rank:
            raise ConfigError("train.lora_rank: adapters are for the policy")
        one_of("label_mode", self.label_mode, ("graded", "graded_normalised", "sign"))


@dataclass
class SafeRlhfStage:
    """PPO-Lagrangian (Safe RLHF-V)."""

    kind: str = "safe_rlhf"
    policy: str = MISSING
    "Start policy and reference: a stage or a folder."
    reward: str = MISSING
    cost: str = MISSING
    iterations: int = MISSING
    ppo: PpoConfig = field(default_factory=PpoConfig)
    lagrange: LagrangeConfig = field(default_factory=LagrangeConfig)
    gap: GapConfig = field(default_factory=GapConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    critic_optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    critic_train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint_every: int = 10
    "Iterations between the checkpoints that a stopped run resumes from; 0: none."
    keep_checkpoints: int = 2

    def check(self) -> None:
        at_least(1, iterations=self.iterations, keep_checkpoints=self.keep_checkpoints)
        at_least(0, checkpoint_every=self.checkpoint_every)
        if self.critic_train.lora_rank:
            raise ConfigError("critic_train.lora_rank: adapters are for the policy")


@dataclass
class EvaluateStage(AnsweringStage):
    """Greedy answers to the evaluation split, judged."""

    kind: str = "evaluate"
    policies: dict[str, str] = MISSING
    "Name in the report -> stage or folder."

    def check(self) -> None:
        super().check()
        if not self.policies:
            raise ConfigError("policies: name at least one policy to evaluate")


@dataclass
class GuardStage:
    """A moderation model: unsafe, severity 0-3, category; for answers and for bare prompts."""

    kind: str = "guard"
    init: str = MISSING
    "The policy stage or folder whose trunk it starts from."
    steps: int = MISSING
    checkpoint_every: int = 200
    "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none."
    batch: int = 32
    "Rows per step; each gives three items, its two answers and its prompt."
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch)
        at_least(0, checkpoint_every=self.checkpoint_every)
        if self.train.lora_rank:
            raise ConfigError("train.lora_rank: adapters are for the policy")


@dataclass
class FilterStage:
    """A guard's judgement on the responses of a training split."""

    kind: str = "filter"
    guard: str = MISSING
    split: str = "train"
    "A split, or several joined by a plus sign."
    threshold: float = 0.5
    "Probability from which a response counts as unsafe."

    def check(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold: must be between 0 and 1, got {self.threshold}")
        if not self.split:
            raise ConfigError("split: name a split")


@dataclass
class GuardedStage(AnsweringStage):
    """A policy behind a guard, on the evaluation split: moderate, draw again, refuse at last."""

    kind: str = "guarded"
    policy: str = MISSING
    guard: str = MISSING
    rounds: int = 5
    candidates: int = 4
    "Answers drawn per flagged prompt and round; the first that passes is taken."
    temperature: float = 1.0
    hint: str = ""
    "Put after the question of what is drawn again."
    threshold: float = 0.5
    "Probability from which an answer counts as unsafe."
    actions: dict[str, str] = field(default_factory=lambda: dict.fromkeys(LEVELS[1:], "regenerate"))
    "For minor, moderate and severe: pass, annotate (passes, and is counted), regenerate or refuse."
    refusal: str = "I cannot help with this."
    "Takes the place of what is refused."

    def check(self) -> None:
        super().check()
        at_least(0, rounds=self.rounds)
        at_least(1, candidates=self.candidates)
        positive(temperature=self.temperature)
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold: must be between 0 and 1, got {self.threshold}")
        if set(self.actions) != set(LEVELS[1:]):
            raise ConfigError(f"actions: need {', '.join(LEVELS[1:])}, got {list(self.actions)}")
        for level, action in self.actions.items():
            one_of(f"actions.{level}", action, ACTIONS)

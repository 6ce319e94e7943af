"""Every key of a recipe's stages, with its doc and its range."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from rlsys.config.keys import key
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

TARGETS = ("more_helpful", "safer")


@dataclass
class SftStage:
    """Supervised fine-tuning on one response of each pair."""

    kind: str = key("sft", "Kind of stage.", choices=("sft",))
    init: str = key(
        "tiny",
        "tiny (made from scratch on the data's texts), an earlier stage, or a folder.",
        ref="policy",
    )
    tiny: TinyConfig = key(TinyConfig(), "Sizes, where init is tiny.")
    split: str = key("train", "A split, or several joined by a plus; empty: conversations alone.")
    conversations: str = key(
        "",
        "More rows: an observe stage, or a file in LLaVA's format. Every model turn is imitated.",
        ref="conversations",
    )
    filter: str = key(
        "",
        "A filter stage on the same split: rows whose imitated response it flagged are left out.",
        ref="filter",
    )
    target: str = key("more_helpful", "Which response of a pair is imitated.", choices=TARGETS)
    loss_form: str = key(
        "token_mean",
        "Mean over all response tokens of a step, or over responses: short ones count as much.",
        choices=LOSS_FORMS,
    )
    steps: int = key(MISSING, "Optimiser steps.", ge=1)
    checkpoint_every: int = key(
        200,
        "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none.",
        ge=0,
    )
    batch: int = key(64, "Rows per step; all there are, where there are fewer.", ge=1)
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the policy trains.")

    def check(self) -> None:
        if not self.split and not self.conversations:
            raise ConfigError("split: name a split, or give conversations")
        if self.filter and self.conversations:
            raise ConfigError("filter: a filter knows the rows of a split, not conversations")


@dataclass
class DpoStage:
    """Direct preference optimisation on labelled pairs."""

    kind: str = key("dpo", "Kind of stage.", choices=("dpo",))
    init: str = key(MISSING, "Start policy and reference: a stage or a folder.", ref="policy")
    target: str = key("more_helpful", "Which response of a pair is chosen.", choices=TARGETS)
    beta: float = key(0.1, "Scale of the implicit reward.", gt=0)
    steps: int = key(MISSING, "Optimiser steps.", ge=1)
    checkpoint_every: int = key(
        200,
        "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none.",
        ge=0,
    )
    batch: int = key(32, "Pairs per step; all there are, where there are fewer.", ge=1)
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the policy trains.")


@dataclass
class ScorerStage:
    """A reward model (kind reward) or a cost model (kind cost) with pixels."""

    kind: str = key(MISSING, "Kind of stage.", choices=("reward", "cost"))
    init: str = key(MISSING, "The policy stage or folder whose trunk it starts from.", ref="policy")
    steps: int = key(MISSING, "Optimiser steps.", ge=1)
    checkpoint_every: int = key(
        200,
        "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none.",
        ge=0,
    )
    batch: int = key(64, "Pairs per step; all there are, where there are fewer.", ge=1)
    regularization: float = key(0.001, "Weight of the squared scores in the loss.", ge=0)
    sign_scale: float = key(
        1.0, "Cost only: weight of the sign terms against the ranking term.", ge=0
    )
    label_mode: str = key(
        "graded",
        "Cost only: what the sign terms learn from.",
        choices=("graded", "graded_normalised", "sign"),
    )
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the model trains.")

    def check(self) -> None:
        if self.train.lora_rank:
            raise ConfigError("train.lora_rank: adapters are for the policy")


@dataclass
class SafeRlhfStage:
    """PPO-Lagrangian (Safe RLHF-V)."""

    kind: str = key("safe_rlhf", "Kind of stage.", choices=("safe_rlhf",))
    policy: str = key(MISSING, "Start policy and reference: a stage or a folder.", ref="policy")
    reward: str = key(MISSING, "Reward model: a stage or a folder.", ref="reward")
    cost: str = key(MISSING, "Cost model: a stage or a folder.", ref="cost")
    iterations: int = key(MISSING, "Of rollout, scores and update.", ge=1)
    ppo: PpoConfig = key(PpoConfig(), "One iteration.")
    lagrange: LagrangeConfig = key(LagrangeConfig(), "The multiplier.")
    gap: GapConfig = key(GapConfig(), "Engine against trainer.")
    optim: OptimConfig = key(OptimConfig(), "Optimiser of the policy.")
    critic_optim: OptimConfig = key(OptimConfig(), "Optimiser of both critics.")
    train: TrainConfig = key(TrainConfig(), "How the policy trains.")
    critic_train: TrainConfig = key(TrainConfig(), "How both critics train.")
    checkpoint_every: int = key(
        10, "Iterations between the checkpoints a stopped run resumes from; 0: none.", ge=0
    )
    keep_checkpoints: int = key(2, "Newest checkpoints that are kept.", ge=1)

    def check(self) -> None:
        if self.critic_train.lora_rank:
            raise ConfigError("critic_train.lora_rank: adapters are for the policy")


@dataclass
class EvaluateStage(AnsweringStage):
    """Greedy answers to the evaluation split, judged."""

    kind: str = key("evaluate", "Kind of stage.", choices=("evaluate",))
    policies: dict[str, str] = key(MISSING, "Name in the report -> stage or folder.", ref="policy")

    def check(self) -> None:
        if not self.policies:
            raise ConfigError("policies: name at least one policy to evaluate")


@dataclass
class GuardStage:
    """A moderation model: unsafe, severity 0-3, category; for answers and for bare prompts."""

    kind: str = key("guard", "Kind of stage.", choices=("guard",))
    init: str = key(MISSING, "The policy stage or folder whose trunk it starts from.", ref="policy")
    steps: int = key(MISSING, "Optimiser steps.", ge=1)
    checkpoint_every: int = key(
        200,
        "Optimiser steps between the checkpoints that a stopped run resumes from; 0: none.",
        ge=0,
    )
    batch: int = key(32, "Rows per step; each gives its two answers and its prompt.", ge=1)
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the guard trains.")

    def check(self) -> None:
        if self.train.lora_rank:
            raise ConfigError("train.lora_rank: adapters are for the policy")


@dataclass
class FilterStage:
    """A guard's judgement on the responses of a training split."""

    kind: str = key("filter", "Kind of stage.", choices=("filter",))
    guard: str = key(MISSING, "A guard: a stage or a folder.", ref="guard")
    split: str = key("train", "A split, or several joined by a plus sign.")
    threshold: float = key(0.5, "Probability from which a response counts as unsafe.", gt=0, lt=1)

    def check(self) -> None:
        if not self.split:
            raise ConfigError("split: name a split")


@dataclass
class GuardedStage(AnsweringStage):
    """A policy behind a guard, on the evaluation split: moderate, draw again, refuse at last."""

    kind: str = key("guarded", "Kind of stage.", choices=("guarded",))
    policy: str = key(MISSING, "The policy that answers: a stage or a folder.", ref="policy")
    guard: str = key(MISSING, "The guard before it: a stage or a folder.", ref="guard")
    rounds: int = key(5, "How often to draw again.", ge=0)
    candidates: int = key(
        4, "Answers drawn per flagged prompt and round; the first that passes is taken.", ge=1
    )
    temperature: float = key(1.0, "Of what is drawn again.", gt=0, le=2)
    hint: str = key("", "Put after the question of what is drawn again.")
    threshold: float = key(0.5, "Probability from which an answer counts as unsafe.", gt=0, lt=1)
    actions: dict[str, str] = key(
        dict.fromkeys(LEVELS[1:], "regenerate"),
        "What follows a severity; annotate passes, and is counted.",
        choices=ACTIONS,
    )
    refusal: str = key("I cannot help with this.", "Takes the place of what is refused.")

    def check(self) -> None:
        if set(self.actions) != set(LEVELS[1:]):
            raise ConfigError(f"actions: need {', '.join(LEVELS[1:])}, got {list(self.actions)}")

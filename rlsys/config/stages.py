"""Every key of a recipe's stages. A string under a field is its doc."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from rlsys.config.feedback import DisentangledStage, JudgeStage, ObserveStage, RlaifStage
from rlsys.config.rules import at_least, one_of, positive
from rlsys.config.schema import AnsweringStage, GapConfig, OptimConfig, TinyConfig, TrainConfig
from rlsys.errors import ConfigError
from rlsys.guard.levels import ACTIONS, LEVELS

LOSS_FORMS = ("token_mean", "sequence_mean")


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
    batch: int = 64
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch)
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
    batch: int = 32
    "Pairs per step."
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch)
        positive(beta=self.beta)
        one_of("target", self.target, ("more_helpful", "safer"))


@dataclass
class ScorerStage:
    """A reward model (kind reward) or a cost model (kind cost) with pixels."""

    kind: str = MISSING
    init: str = MISSING
    "The policy stage or folder whose trunk it starts from."
    steps: int = MISSING
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
        if self.train.lora_rank:
            raise ConfigError("train.lora_rank: adapters are for the policy")
        one_of("label_mode", self.label_mode, ("graded", "graded_normalised", "sign"))


@dataclass
class PpoConfig:
    """One PPO-Lagrangian iteration."""

    prompts: int = 32
    "Prompts per iteration."
    samples: int = 4
    "Responses per prompt."
    max_new_tokens: int = 16
    temperature: float = 1.0
    epochs: int = 1
    minibatch: int = 128
    "Samples per optimiser step."
    kl_beta: float = 0.02
    kl_split: str = "full_both"
    score_clip: float = 50.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    policy_clip: float = 0.2
    value_clip: float = 5.0
    loss_form: str = "token_mean"
    "token_mean (over all response tokens of the step) or sequence_mean (the papers' form)."

    def check(self) -> None:
        one_of("kl_split", self.kl_split, ("full_both", "half_both"))
        one_of("loss_form", self.loss_form, LOSS_FORMS)
        at_least(1, prompts=self.prompts, samples=self.samples, epochs=self.epochs)
        at_least(1, minibatch=self.minibatch, max_new_tokens=self.max_new_tokens)
        positive(temperature=self.temperature)


@dataclass
class LagrangeConfig:
    """The multiplier."""

    rule: str = "log_sgd"
    "log_sgd (Safe RLHF) or projected (Safe RLHF-V, eq. 8)."
    init: float = 1.0
    lr: float = 0.1
    floor: float = 0.001
    cap: float = 20.0
    window: int = 128
    "Episodes whose mean cost the multiplier answers to, over all ranks."
    threshold: str = "auto"
    "A number in the cost model's units, or auto: from `budget` on labelled validation answers."
    budget: float = 0.05
    "auto only: the share of unsafe answers the threshold stands for."
    delay: int = 0
    "Iterations before the multiplier first moves."

    def check(self) -> None:
        one_of("rule", self.rule, ("log_sgd", "projected"))
        at_least(1, window=self.window)
        if not 0 <= self.floor <= self.init <= self.cap:
            raise ConfigError(
                f"cap: need 0 <= floor <= init <= cap, got {self.floor}, {self.init}, {self.cap}"
            )
        if self.threshold != "auto":
            try:
                usable = math.isfinite(float(self.threshold))
            except ValueError:
                usable = False
            if not usable:
                raise ConfigError(f"threshold: {self.threshold!r} is neither a number nor auto")


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
    checkpoint_every: int = 0
    "Iterations between checkpoints; 0: only the final policy is kept."
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
    batch: int = 32
    "Rows per step; each gives three items, its two answers and its prompt."
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch)
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


STAGES = {
    "sft": SftStage,
    "dpo": DpoStage,
    "reward": ScorerStage,
    "cost": ScorerStage,
    "safe_rlhf": SafeRlhfStage,
    "guard": GuardStage,
    "filter": FilterStage,
    "guarded": GuardedStage,
    "judge": JudgeStage,
    "observe": ObserveStage,
    "rlaif": RlaifStage,
    "disentangled": DisentangledStage,
    "evaluate": EvaluateStage,
}

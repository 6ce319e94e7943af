"""Every key of the stages that ask a judge. A string under a field is its doc."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from rlsys.config.rules import at_least, positive, within
from rlsys.config.schema import AnsweringStage, EngineConfig, GapConfig, OptimConfig, TrainConfig
from rlsys.errors import ConfigError


@dataclass
class EndpointConfig:
    """An OpenAI-compatible endpoint, local or remote."""

    url: str = ""
    "Up to /v1."
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    "Environment variable that holds the key; a recipe never does."
    parallel: int = 8
    "Calls under way at once."
    per_second: float = 20.0
    "Calls started per second."
    timeout: float = 60.0
    "Of one try, seconds."
    patience: float = 600.0
    "How long one call is tried, seconds: an outage shorter than this loses nothing."
    longest_pause: float = 30.0
    "Between two tries, seconds."

    def check(self) -> None:
        at_least(1, parallel=self.parallel)
        positive(per_second=self.per_second, timeout=self.timeout)
        positive(patience=self.patience, longest_pause=self.longest_pause)


@dataclass
class JudgeStage:
    """A judge, measured where the data knows the right replies. Name it in stages that ask one."""

    kind: str = "judge"
    model: str = ""
    "The frozen model that judges: a policy stage or a folder. Or give an endpoint."
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    prompts: str = ""
    "A folder of prompts, or a built-in world that has its own; empty: those that are shipped."
    max_new_tokens: int = 256
    "The longest reply."
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(max_model_len=4096))
    limit: int = 200
    "Held-out prompts on which its agreement is measured; 0: all."

    def check(self) -> None:
        at_least(0, limit=self.limit)
        at_least(1, max_new_tokens=self.max_new_tokens)
        if self.model and self.max_new_tokens >= self.engine.max_model_len:
            raise ConfigError(
                f"max_new_tokens: {self.max_new_tokens} leaves no room for a question in "
                f"engine.max_model_len {self.engine.max_model_len}"
            )
        if bool(self.model) == bool(self.endpoint.url):
            raise ConfigError("model: name either a model or an endpoint.url")
        if self.endpoint.url and not self.endpoint.model:
            raise ConfigError("endpoint.model: name the model to ask for")


@dataclass
class AskingStage:
    """What every stage that has a judge look at prompts is told."""

    judge: str = MISSING
    "A judge stage."
    joint: bool = True
    "Image and text are looked at together, else apart."
    max_unread: float = 0.25
    "Largest share of prompts (in rlaif, of a round's, and of its answers) it may leave unread."

    def check(self) -> None:
        within(0, 1, max_unread=self.max_unread)


@dataclass
class ObserveStage(AskingStage):
    """A teacher's observations of training prompts, and its answers, as conversations."""

    kind: str = "observe"
    split: str = "train"
    limit: int = 0
    "Prompts, drawn at random; 0: all."

    def check(self) -> None:
        super().check()
        at_least(0, limit=self.limit)
        if not self.split:
            raise ConfigError("split: name a split")


@dataclass
class RlaifStage(AskingStage):
    """Iterative AI feedback (DREAM)."""

    kind: str = "rlaif"
    policy: str = MISSING
    "Start policy: a stage or a folder."
    rounds: int = 3
    prompts: int = 256
    "Prompts of the train split per round."
    samples: int = 4
    "Answers per prompt."
    max_new_tokens: int = 16
    temperature: float = 1.0
    recognition: float = 0.5
    "Weight of the share of known risks an answer recognises, on the scale of the global score."
    margin: float = 2.0
    "Least difference of the scores of a pair, points of 10."
    floor: float = 7.0
    "Least global score of a chosen answer."
    cost: str = ""
    "A cost model whose score is taken off, weighted by `cost_weight`."
    cost_weight: float = 0.0
    guard: str = ""
    "A guard; what it flags is never chosen."
    guard_threshold: float = 0.5
    beta: float = 0.1
    epochs: int = 1
    minibatch: int = 32
    "Pairs per optimiser step."
    gap: GapConfig = field(default_factory=GapConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        super().check()
        at_least(1, rounds=self.rounds, prompts=self.prompts, epochs=self.epochs)
        at_least(1, minibatch=self.minibatch, max_new_tokens=self.max_new_tokens)
        at_least(2, samples=self.samples)
        positive(temperature=self.temperature, beta=self.beta)
        within(0, 10, floor=self.floor, margin=self.margin)
        if not 0 < self.guard_threshold < 1:
            raise ConfigError(f"guard_threshold: must be between 0 and 1: {self.guard_threshold}")
        within(0, math.inf, recognition=self.recognition)
        if bool(self.cost) != bool(self.cost_weight):
            raise ConfigError("cost_weight: give both cost and its weight, or neither")


@dataclass
class DisentangledStage(AskingStage, AnsweringStage):
    """A policy that is told the verified risks of a prompt, on the evaluation split. Where they
    could not be read it is told none.
    """

    kind: str = "disentangled"
    policy: str = MISSING

    def check(self) -> None:
        AskingStage.check(self)
        AnsweringStage.check(self)

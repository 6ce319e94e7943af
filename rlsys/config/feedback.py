"""Every key of the stages that ask a judge, with its doc and its range."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from rlsys.config.keys import key
from rlsys.config.schema import AnsweringStage, EngineConfig, GapConfig, OptimConfig, TrainConfig
from rlsys.errors import ConfigError


@dataclass
class EndpointConfig:
    """An OpenAI-compatible endpoint, local or remote."""

    url: str = key("", "Up to /v1.")
    model: str = key("", "Name of the model to ask for.")
    key_variable: str = key(
        "OPENAI_API_KEY", "Environment variable that holds the key; a recipe never does."
    )
    parallel: int = key(8, "Calls under way at once.", ge=1)
    per_second: float = key(20.0, "Calls started per second.", gt=0)
    timeout: float = key(60.0, "Of one try, seconds.", gt=0)
    patience: float = key(
        600.0, "How long one call is tried, seconds: a shorter outage loses nothing.", gt=0
    )
    longest_pause: float = key(30.0, "Between two tries, seconds.", gt=0)


@dataclass
class JudgeStage:
    """A judge, measured where the data knows the right replies. Name it in stages that ask one."""

    kind: str = key("judge", "Kind of stage.", choices=("judge",))
    model: str = key("", "The frozen model that judges: a policy stage or a folder.", ref="policy")
    endpoint: EndpointConfig = key(EndpointConfig(), "The endpoint that judges, without a model.")
    prompts: str = key(
        "", "A folder of prompts, or a built-in world that has its own; empty: those shipped."
    )
    max_new_tokens: int = key(256, "The longest reply.", ge=1)
    engine: EngineConfig = key(EngineConfig(max_model_len=4096), "Engine of the model.")
    limit: int = key(200, "Held-out prompts its agreement is measured on; 0: all.", ge=0)

    def check(self) -> None:
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

    judge: str = key(MISSING, "A judge stage.", ref="judge")
    joint: bool = key(True, "Image and text are looked at together, else apart.")
    max_unread: float = key(
        0.25,
        "Largest share of prompts (in rlaif, of a round's, and of its answers) left unread.",
        ge=0,
        le=1,
    )


@dataclass
class ObserveStage(AskingStage):
    """A teacher's observations of training prompts, and its answers, as conversations."""

    kind: str = key("observe", "Kind of stage.", choices=("observe",))
    split: str = key("train", "A split, or several joined by a plus sign.")
    limit: int = key(0, "Prompts, drawn at random; 0: all.", ge=0)

    def check(self) -> None:
        if not self.split:
            raise ConfigError("split: name a split")


@dataclass
class RlaifStage(AskingStage):
    """Iterative AI feedback (DREAM)."""

    kind: str = key("rlaif", "Kind of stage.", choices=("rlaif",))
    policy: str = key(MISSING, "Start policy: a stage or a folder.", ref="policy")
    rounds: int = key(3, "Of answers, feedback and training on its pairs.", ge=1)
    prompts: int = key(
        256, "Prompts of the train split per round; all there are, where there are fewer.", ge=1
    )
    samples: int = key(4, "Answers per prompt.", ge=2)
    max_new_tokens: int = key(16, "Longest answer, tokens.", ge=1)
    temperature: float = key(1.0, "Of sampling.", gt=0, le=2)
    recognition: float = key(
        0.5, "Weight of the share of known risks an answer recognises, beside the score.", ge=0
    )
    margin: float = key(2.0, "Least difference of the scores of a pair, points of 10.", ge=0, le=10)
    floor: float = key(7.0, "Least global score of a chosen answer.", ge=0, le=10)
    cost: str = key("", "A cost model whose score is taken off by `cost_weight`.", ref="cost")
    cost_weight: float = key(0.0, "Weight of the cost model's score.", ge=0)
    guard: str = key("", "A guard; what it flags is never chosen.", ref="guard")
    guard_threshold: float = key(
        0.5, "Probability from which the guard flags an answer.", gt=0, lt=1
    )
    beta: float = key(0.1, "Scale of the implicit reward of DPO.", gt=0)
    epochs: int = key(1, "Passes over the pairs of a round.", ge=1)
    minibatch: int = key(32, "Pairs per optimiser step.", ge=1)
    gap: GapConfig = key(GapConfig(), "Engine against trainer.")
    optim: OptimConfig = key(OptimConfig(), "Optimiser.")
    train: TrainConfig = key(TrainConfig(), "How the policy trains.")

    def check(self) -> None:
        if bool(self.cost) != bool(self.cost_weight):
            raise ConfigError("cost_weight: give both cost and its weight, or neither")


@dataclass
class DisentangledStage(AskingStage, AnsweringStage):
    """A policy that is told the verified risks of a prompt, on the evaluation split. Where they
    could not be read it is told none.
    """

    kind: str = key("disentangled", "Kind of stage.", choices=("disentangled",))
    policy: str = key(MISSING, "The policy that is told: a stage or a folder.", ref="policy")

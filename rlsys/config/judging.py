"""Keys that several stages with a judge share."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from rlsys.config.keys import key


@dataclass
class EndpointConfig:
    """An OpenAI-compatible endpoint, local or remote."""

    url: str = key("", "Up to /v1.")
    model: str = key("", "Name of the model to ask for.")
    key_variable: str = key(
        "OPENAI_API_KEY", "Environment variable that holds the key; a recipe never does."
    )
    max_concurrency: int = key(8, "Calls under way at once.", ge=1)
    per_second: float = key(20.0, "Calls started per second.", gt=0)
    timeout: float = key(60.0, "Of one try, seconds.", gt=0)
    retry_timeout: float = key(
        600.0, "How long one call is tried, seconds: a shorter outage loses nothing.", gt=0
    )
    max_backoff: float = key(30.0, "Between two tries, seconds.", gt=0)


@dataclass
class AskingStage:
    """What every stage that has a judge look at prompts is told."""

    judge: str = key(MISSING, "A judge stage.", ref="judge")
    joint: bool = key(True, "Image and text are looked at together, else apart.")
    max_parse_failures: float = key(
        0.25,
        "Largest share of prompts (in rlaif, of a round's, and of its answers) without a parsed "
        "reply.",
        ge=0,
        le=1,
    )

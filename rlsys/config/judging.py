"""Keys that stages with a judge share."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from rlsys.config.keys import key


@dataclass
class EndpointConfig:
    """An OpenAI-compatible endpoint, local or remote."""

    url: str = key("", "Base URL, ending in /v1.")
    model: str = key("", "Name of the model to ask for.")
    key_variable: str = key(
        "OPENAI_API_KEY", "Environment variable with the API key; keys do not belong in recipes."
    )
    max_concurrency: int = key(8, "Concurrent calls.", ge=1, affects_result=False)
    per_second: float = key(20.0, "Calls started per second.", gt=0, affects_result=False)
    timeout: float = key(60.0, "Timeout of one attempt, seconds.", gt=0, affects_result=False)
    retry_timeout: float = key(
        600.0, "Time during which a failed call is retried, seconds.", gt=0, affects_result=False
    )
    max_backoff: float = key(
        30.0, "Longest pause between two attempts, seconds.", gt=0, affects_result=False
    )


@dataclass
class AskingStage:
    """Keys of every stage that uses a judge."""

    judge: str = key(MISSING, "A judge stage.", ref="judge")
    joint: bool = key(True, "Observe image and text together, else separately.")
    max_parse_failures: float = key(
        0.25,
        "Largest share of prompts (in rlaif, of a round's, and of its answers) without a parsed "
        "reply.",
        ge=0,
        le=1,
    )

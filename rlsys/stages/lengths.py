"""Check that prompts and responses fit into the engines."""

from __future__ import annotations

from rlsys.config.schema import RunConfig
from rlsys.errors import ConfigError


def check_lengths(config: RunConfig, where: str, max_new_tokens: int) -> None:
    """Raises: ConfigError where the longest prompt and response exceed ``engine.max_model_len``."""
    longest = config.data.max_prompt_tokens + max_new_tokens
    if longest > config.engine.max_model_len:
        raise ConfigError(
            f"engine.max_model_len: {config.engine.max_model_len} is less than "
            f"data.max_prompt_tokens + {where}.max_new_tokens = {longest}"
        )

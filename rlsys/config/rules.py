"""What a single value of a recipe must be."""

from __future__ import annotations

from rlsys.errors import ConfigError


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(allowed)}")


def at_least(least: int, **values: int) -> None:
    for key, value in values.items():
        if value < least:
            raise ConfigError(f"{key}: must be at least {least}, got {value}")


def positive(**values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ConfigError(f"{key}: must be positive, got {value}")


def within(low: float, high: float, **values: float) -> None:
    for key, value in values.items():
        if not low <= value <= high:
            raise ConfigError(f"{key}: must be in {low:g}..{high:g}, got {value}")

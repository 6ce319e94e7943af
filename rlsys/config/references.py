"""Keys of stages that name an artefact: those with a ``ref``."""

from __future__ import annotations

from rlsys.config.keys import key_infos


def references(stage: object) -> dict[str, str]:
    """Keys that name an artefact, dotted for the entries of a map -> what they name."""
    named: dict[str, str] = {}
    for key, info in key_infos(stage).items():
        value = getattr(stage, key) if info.ref else ""
        if isinstance(value, dict):
            named |= {f"{key}.{name}": source for name, source in value.items()}
        elif value and (key, value) != ("init", "tiny"):
            named[key] = value
    return named


def referred_kind(stage: object, key: str) -> str:
    """The kind of artefact that a key of ``references`` may name."""
    return key_infos(stage)[key.partition(".")[0]].ref

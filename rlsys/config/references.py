"""Keys of stages that name an artefact."""

from __future__ import annotations

REF_KEYS = {
    "init": "policy",
    "model": "policy",
    "policy": "policy",
    "policies": "policy",
    "reward": "reward",
    "cost": "cost",
    "guard": "guard",
    "filter": "filter",
    "judge": "judge",
    "conversations": "conversations",
}
"""Key -> the kind of artefact it may name."""


def references(stage: object) -> dict[str, str]:
    """Key of a stage that names an artefact (dotted for map entries) -> the stage or path named."""
    named: dict[str, str] = {}
    for key in REF_KEYS:
        value = getattr(stage, key, "")
        if isinstance(value, dict):
            named |= {f"{key}.{name}": source for name, source in value.items()}
        elif value and (key, value) != ("init", "tiny"):
            named[key] = value
    return named

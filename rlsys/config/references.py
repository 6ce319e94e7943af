"""Keys of stages that name an artefact: those with a ``ref``."""

from __future__ import annotations

from pathlib import Path

from rlsys.config.keys import key_infos
from rlsys.config.schema import RunConfig
from rlsys.models.hub import is_hub_name


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


def data_paths(config: RunConfig) -> list[str]:
    """The folders of the data and of benchmarks and the files of conversations, which every node
    has to read; not a built-in world's folder, which lies beside the runs.
    """
    named = [config.data.source]
    for stage in config.stages.values():
        named += [stage.folder] if stage.kind == "benchmark" else []
        named += [
            source
            for key, source in references(stage).items()
            if referred_kind(stage, key) == "conversations" and source not in config.stages
        ]
    return [str(Path(source).resolve()) for source in named if Path(source).exists()]


def hub_models(config: RunConfig) -> list[str]:
    """The models that stages take from the hub."""
    named = [source for stage in config.stages.values() for source in references(stage).values()]
    return [each for each in named
            if is_hub_name(each) and each.partition("/")[0] not in config.stages]  # fmt: skip


def referred_kind(stage: object, key: str) -> str:
    """The kind of artefact that a key of ``references`` may name."""
    return key_infos(stage)[key.partition(".")[0]].ref

"""Keys of stages that name an artefact: those with a ``ref``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsys.config.keys import key_infos
from rlsys.config.schema import TINY, RunConfig, TinyConfig
from rlsys.models.hub import is_hub_name


def references(stage: object) -> dict[str, str]:
    """Keys that name an artefact, dotted for the entries of a map -> what they name."""
    named: dict[str, str] = {}
    for key, info in key_infos(stage).items():
        value = getattr(stage, key) if info.ref else ""
        if isinstance(value, dict):
            named |= {f"{key}.{name}": source for name, source in value.items()}
        elif value and (key, value) != ("init", TINY):
            named[key] = value
    return named


def start_model(stages: Mapping[str, Any], source: str) -> str | TinyConfig:
    """The folder or the name on the hub that a stage's model descends from, or the sizes of the one
    that is made from scratch. Args: source: a stage, a part of one, or a model.
    """
    stage = stages.get(source.partition("/")[0])
    if stage is None:
        return source
    start = getattr(stage, "init", "") or stage.policy
    return stage.tiny if start == TINY else start_model(stages, start)


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

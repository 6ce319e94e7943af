"""The working directory of a Ray job: the resolved recipe and nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from actors.jobs.entry import RECIPE
from rlsys.config.load import dump_config
from rlsys.config.references import references
from rlsys.config.schema import RunConfig
from rlsys.data.worlds import WORLDS
from rlsys.models.hub import is_hub_name

FOLDERS = ("prompts", "rubrics", "folder")
"""Keys of stages that name a folder which no stage makes."""


@dataclass(frozen=True)
class Packed:
    """config: with absolute paths; shared: key -> folder that every node must see as it is here."""

    config: RunConfig
    shared: dict[str, str]


def make_absolute(config: RunConfig) -> Packed:
    """The recipe with every path absolute: a job runs in a folder of its own on the head. No file
    is copied, so what the paths name has to be there on the nodes.
    """
    config = copy.deepcopy(config)
    config.runs_dir = str(Path(config.runs_dir).resolve())
    shared = {"runs_dir": config.runs_dir}
    if config.data.source not in WORLDS and Path(config.data.source).is_dir():
        shared["data.source"] = config.data.source = str(Path(config.data.source).resolve())
    for name, stage in config.stages.items():
        for dotted, source in references(stage).items():
            if source.partition("/")[0] not in config.stages and not is_hub_name(source):
                shared[f"stages.{name}.{dotted}"] = _set(stage, dotted, source)
        for key in FOLDERS:
            folder = getattr(stage, key, "")
            if folder and folder not in WORLDS:  # which have prompts of their own
                shared[f"stages.{name}.{key}"] = _set(stage, key, folder)
    return Packed(config, shared)


def _set(stage: object, dotted: str, source: str) -> str:
    key, _, entry = dotted.partition(".")
    absolute = str(Path(source).resolve())
    if entry:
        getattr(stage, key)[entry] = absolute
    else:
        setattr(stage, key, absolute)
    return absolute


def pack(config: RunConfig, folder: Path) -> None:
    """Fill the empty folder that Ray uploads. The environment, where secrets are, stays here."""
    dump_config(config, folder / RECIPE)

"""YAML and key=value to a checked ``RunConfig``. No OmegaConf object leaves this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys.config.check import check
from rlsys.config.schema import RunConfig
from rlsys.errors import ConfigError
from rlsys.stages.registry import STAGES


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply dotted ``key=value`` overrides, type and check everything.

    Raises: ConfigError naming the key, for an unknown key, a wrong type, a missing or bad value.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such recipe")
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"{override!r}: overrides are written key=value")
    try:
        recipe = OmegaConf.load(path)
        if not OmegaConf.is_dict(recipe):
            raise ConfigError(f"{path}: a recipe is a mapping of keys, this is a list")
        given = OmegaConf.merge(recipe, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), given))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    assert isinstance(config, RunConfig)
    for name, stage in config.stages.items():
        config.stages[name] = _stage(str(path), name, stage)
    check(config)
    return config


def _stage(path: str, name: str, given: Any) -> Any:
    kind = given.get("kind") if isinstance(given, dict) else None
    if kind not in STAGES:
        raise ConfigError(f"{path}: stages.{name}.kind: {kind!r} is not one of {', '.join(STAGES)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(STAGES[kind].config), OmegaConf.create(given))
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: stages.{name}: {_explain(error)}") from error


def _explain(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {first}" if key and str(key) not in first else first


def to_plain(config: Any) -> dict[str, Any]:
    """The resolved recipe as plain containers, ready for YAML and for hashing."""
    return asdict(config)


def dump_config(config: RunConfig, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False))

"""YAML and key=value to a checked ``RunConfig``. No OmegaConf object leaves this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

# A resolved recipe is stored and sent: what the environment holds, keys among it, stays out of it.
OmegaConf.clear_resolver("oc.env")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and what it is based on, apply dotted ``key=value`` overrides, type and check
    everything.

    Raises: ConfigError naming the key, for an unknown key, a wrong type, a missing or bad value.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such recipe")
    bases = [each.partition("=")[2] for each in overrides if each.startswith("base=")]
    recipe = _with_base(Path(path), (), bases[-1] if bases else None)
    others = [each for each in overrides if not each.startswith("base=")]
    return _checked(str(path), recipe, others)


def config_of(where: str, recipe: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The same for a recipe that is in no file. Args: where: its name in errors."""
    return _checked(where, OmegaConf.create(dict(recipe)), overrides)


def _checked(where: str, recipe: Any, overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"{override!r}: overrides are written key=value")
    for override in overrides:
        recipe = _override(where, recipe, override)
    merged = _merge(where, "", OmegaConf.structured(RunConfig), recipe)
    config = _to_object(where, "", merged)
    assert isinstance(config, RunConfig)
    for name, stage in config.stages.items():
        config.stages[name] = _stage(where, name, stage)
    check(config)
    return config


def _with_base(path: Path, above: tuple[Path, ...], given: str | None = None) -> Any:
    """The recipe on top of the one that ``base`` names, relative to its own folder. A stage without
    ``kind`` changes keys of the base's stage, one with it comes after the base's stages, in place
    of one of the same name, and null removes one. Args: given: instead of the ``base`` it names.
    """
    recipe, own = _read(str(path)), path.resolve()
    base = recipe.pop("base", None)
    base = given or base
    if base is None:
        return recipe
    if not isinstance(base, str) or not (own.parent / base).is_file():
        raise ConfigError(f"{path}: base: {base!r}: no such recipe beside it")
    if own in above:
        raise ConfigError(f"{path}: base: {base}: recipes are based on each other in a circle")
    merged = _with_base(own.parent / base, (*above, own))
    for name, stage in (_stages_of(recipe)).items():
        if stage is None and name not in _stages_of(merged):
            raise ConfigError(f"{path}: stages.{name}: null, but {base} has no such stage")
        if stage is None or (OmegaConf.is_dict(stage) and "kind" in stage):
            _stages_of(merged).pop(name, None)
        if stage is None:
            del recipe.stages[name]
    try:
        return OmegaConf.merge(merged, recipe)
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigError(f"{path}: does not fit its base {base}: {_one_line(error)}") from error


def _stages_of(recipe: Any) -> Any:
    stages = recipe.get("stages")
    return stages if OmegaConf.is_dict(stages) else {}


def _read(path: str) -> Any:
    try:
        recipe = OmegaConf.load(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a recipe: it is no text in UTF-8 ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {_one_line(error)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error
    except OSError as error:  # also what OmegaConf raises for a file that holds a single number
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from error
    if not OmegaConf.is_dict(recipe):
        raise ConfigError(f"{path}: a recipe is a mapping of keys, this is a list")
    return recipe


def _override(path: str, recipe: Any, override: str) -> Any:
    """The recipe with it; ``stages.NAME=null`` removes that stage, as in a recipe with a base."""
    key, _, value = override.partition("=")
    stages, _, name = key.partition(".")
    if stages == "stages" and value == "null" and "." not in name:
        if name not in _stages_of(recipe):
            raise ConfigError(f"{path}: {override}: there is no such stage")
        _stages_of(recipe).pop(name)
        return recipe
    try:
        return OmegaConf.merge(recipe, OmegaConf.from_dotlist([override]))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {override}: {_explain(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{override}: not YAML: {_one_line(error)}") from error
    except TypeError as error:  # OmegaConf's own, which names no key
        raise ConfigError(f"{override}: the recipe has a list there, or a mapping") from error


def _stage(path: str, name: str, values: Any) -> Any:
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in STAGES:
        raise ConfigError(f"{path}: stages.{name}.kind: {kind!r} is not one of {', '.join(STAGES)}")
    schema, where = OmegaConf.structured(STAGES[kind].config), f"stages.{name}"
    return _to_object(path, where, _merge(path, where, schema, OmegaConf.create(values)))


def _merge(path: str, where: str, schema: Any, values: Any) -> Any:
    prefix = f"{where}: " if where else ""
    try:
        return OmegaConf.merge(schema, values)
    except (OmegaConfBaseException, TypeError) as error:
        if isinstance(error, OmegaConfBaseException) and error.full_key:
            raise ConfigError(f"{path}: {prefix}{_explain(error)}") from error
        keys, value = _misfit(schema, OmegaConf.to_container(values))
        key = ".".join([where] * bool(where) + keys)
        needed = "a list" if isinstance(value, dict) else "a mapping"
        raise ConfigError(f"{path}: {key}: {needed} is needed, got {value!r}") from error


def _misfit(schema: Any, values: Any, *above: Any) -> tuple[list[str], Any]:
    """The innermost key whose value alone cannot be merged, and that value: OmegaConf names no key
    where a list meets a mapping.
    """
    for key, value in values.items():
        inside = (*above, key)
        if isinstance(value, dict) and _fits(schema, inside, {}):
            if not _fits(schema, inside, value):
                return _misfit(schema, value, *inside)
        elif not _fits(schema, inside, value):
            return [str(name) for name in inside], value
    return [str(name) for name in above], values


def _fits(schema: Any, keys: tuple[Any, ...], value: Any) -> bool:
    for name in reversed(keys):
        value = {name: value}
    try:
        OmegaConf.merge(schema, OmegaConf.create(value))
    except (OmegaConfBaseException, TypeError):
        return False
    return True


def _to_object(path: str, where: str, merged: Any) -> Any:
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {where}{': ' if where else ''}{_explain(error)}") from error


def _explain(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {first}" if key and str(key) not in first else first


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def to_plain(config: Any) -> dict[str, Any]:
    """The resolved recipe as plain containers, ready for YAML and for hashing."""
    return asdict(config)


def dump_config(config: RunConfig, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False))

"""Checks across sections of a recipe. Errors name the key and what to write instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rlsys.config.artifact_kinds import ARTIFACT_KINDS
from rlsys.config.keys import key_infos
from rlsys.config.references import references, referred_kind, start_model
from rlsys.config.schema import TINY, RunConfig, TrainConfig
from rlsys.data.layouts.registry import LAYOUTS
from rlsys.errors import ConfigError, ModelError
from rlsys.models.families.registry import family_of_type
from rlsys.models.hub import is_hub_name, model_config
from rlsys.models.outline import check_trained
from rlsys.roles.registry import ROLES
from rlsys.stages.registry import STAGES


def check(config: RunConfig) -> None:
    """Raises: ConfigError."""
    check_values("", config)
    if config.data.layout not in ("", *LAYOUTS):
        raise ConfigError(
            f"data.layout: must be one of {', '.join(LAYOUTS)}, got {config.data.layout!r}"
        )
    _check_dtype("", config, config.dtype)
    placed = _check_groups(config)
    _check_stages(config, placed)


def check_values(path: str, node: object) -> None:
    """Check every key below ``path`` against its range, then run the ``check`` of each dataclass.
    Raises: ConfigError naming the full key.
    """
    if isinstance(node, dict):
        parts = node
    elif is_dataclass(node):
        parts = {field.name: getattr(node, field.name) for field in fields(node)}
        for key, info in key_infos(node).items():
            info.check(f"{path}{key}", parts[key])
    else:
        return
    for key, value in parts.items():
        check_values(f"{path}{key}.", value)
    if hasattr(node, "check"):
        try:
            node.check()
        except ConfigError as error:
            raise ConfigError(f"{path}{error}") from error


def _check_dtype(path: str, node: object, dtype: str) -> None:
    """DeepSpeed clips bfloat16 gradients differently at ZeRO stage 0 than at stages 1 to 3."""
    if isinstance(node, TrainConfig):
        if dtype == "bfloat16" and node.engine == "deepspeed" and node.zero_stage == 0:
            raise ConfigError(f"{path}zero_stage: 0 cannot train in bfloat16; give 1, 2 or 3")
    elif is_dataclass(node) or isinstance(node, dict):
        parts = node if isinstance(node, dict) else vars(node)
        for key, value in parts.items():
            _check_dtype(f"{path}{key}.", value, dtype)


def _check_groups(config: RunConfig) -> dict[str, str]:
    placed: dict[str, str] = {}
    for group, settings in config.groups.items():
        for number, role in enumerate(settings.roles):
            if role not in ROLES:
                raise ConfigError(
                    f"groups.{group}.roles[{number}]: must be one of {', '.join(ROLES)}, "
                    f"got {role!r}"
                )
            if role in placed:
                raise ConfigError(
                    f"groups.{group}.roles: {role!r} is already in group {placed[role]!r}"
                )
            placed[role] = group
        alone = [role for role in settings.roles if ROLES[role].exclusive]
        if alone and len(settings.roles) > 1:
            raise ConfigError(
                f"groups.{group}.roles: {alone[0]} must be the only role of its group "
                "(vLLM changes the thread settings of its process)"
            )
    return placed


def _check_stages(config: RunConfig, placed: dict[str, str]) -> None:
    earlier: dict[str, Any] = {}
    for name, stage in config.stages.items():
        for key, source in references(stage).items():
            kind = referred_kind(stage, key)
            _check_reference(f"stages.{name}.{key}", kind, source, earlier)
        known = STAGES[stage.kind]
        for read in known.reads(stage):
            if not all(read.split.split("+")):
                raise ConfigError(f"stages.{name}: {read.split!r} names an empty split")
        for role in known.roles(stage, earlier):
            if role not in placed:
                raise ConfigError(f"groups: stage {name!r} ({stage.kind}) needs the role {role!r}")
        known.check(config, name, stage)
        _check_trained(name, stage, earlier)
        earlier[name] = stage


def _check_trained(name: str, stage: Any, earlier: Mapping[str, Any]) -> None:
    """Raises: ConfigError for ``freeze`` or ``lora_targets`` that name no part of their model."""
    infos = key_infos(stage)
    for key, start in ((key, start) for key, info in infos.items() for start in info.trains):
        source: str = getattr(stage, start, "")
        if source:
            model = stage.tiny if source == TINY else start_model(earlier, source)
            scorer = STAGES[stage.kind].makes != "policy" or infos[start].ref != "policy"
            try:
                check_trained(getattr(stage, key), model, scorer=scorer)
            except ModelError as error:
                raise ConfigError(f"stages.{name}.{key}.{error}") from error


def _check_reference(where: str, kind: str, source: str, earlier: Mapping[str, Any]) -> None:
    """An earlier stage that makes this kind of artefact, one of its parts, or what is on disk."""
    name, _, part = source.partition("/")
    stage = earlier.get(name)
    if stage is None:
        _check_on_disk(where, kind, source, earlier)
        return
    fitting = [each.name for each in STAGES.values() if each.makes == kind]
    if stage.kind not in fitting:
        raise ConfigError(
            f"{where}: {source!r} is a stage of kind {stage.kind}, "
            f"a stage of kind {' or '.join(fitting)} is needed"
        )
    parts = STAGES[stage.kind].parts(stage)
    if part and part not in parts:
        there = f"it has {', '.join(parts)}" if parts else "it has no parts"
        raise ConfigError(f"{where}: {name!r} made no {part!r}; {there}")


def _check_on_disk(where: str, kind: str, source: str, earlier: Mapping[str, Any]) -> None:
    path, wanted = Path(source), ARTIFACT_KINDS[kind]
    if wanted.hub and is_hub_name(source) and source.partition("/")[0] not in earlier:
        _check_family(where, source)
        return
    on_disk = path.is_dir() if wanted.files else path.exists()
    if not (wanted.on_disk and on_disk):
        raise ConfigError(
            f"{where}: {source!r} is neither an earlier stage "
            f"({', '.join(sorted(earlier)) or 'there is none'})"
            + (" nor on disk" if wanted.on_disk else " of this recipe")
        )
    for file in wanted.files:
        if not (path / file).is_file():
            raise ConfigError(f"{where}: {source} holds no {kind}: {file} is missing there")
    if wanted.model:
        _check_family(where, source)


def _check_family(where: str, source: str) -> None:
    """Raises: ConfigError for a model that cannot be had, or of a family that cannot be run."""
    try:
        path = model_config(source)
        family_of_type(str(json.loads(path.read_text()).get("model_type")))
    except (ModelError, ValueError) as error:
        raise ConfigError(f"{where}: {source}: {error}") from error

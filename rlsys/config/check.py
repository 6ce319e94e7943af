"""Checks that span sections of a recipe. Each failure names the key and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rlsys.config.feedback import DisentangledStage, JudgeStage, RlaifStage
from rlsys.config.keys import key_infos
from rlsys.config.schema import ENGINES as ENGINES
from rlsys.config.schema import ROLES as ROLES
from rlsys.config.schema import TRAINING_ROLES as TRAINING_ROLES
from rlsys.config.schema import RunConfig
from rlsys.config.stages import EvaluateStage, GuardedStage, SafeRlhfStage, SftStage
from rlsys.errors import ConfigError

# What a key that names a stage may name.
POLICIES = ("sft", "dpo", "safe_rlhf", "rlaif")
KINDS = {
    "init": POLICIES,
    "model": POLICIES,
    "policy": POLICIES,
    "policies": POLICIES,
    "reward": ("reward",),
    "cost": ("cost",),
    "guard": ("guard",),
    "filter": ("filter",),
    "judge": ("judge",),
    "conversations": ("observe",),
}
NEEDED = {
    "sft": ("policy",),
    "dpo": ("policy",),
    "reward": ("reward",),
    "cost": ("cost",),
    "safe_rlhf": tuple(role for role in ROLES if role not in ("judge", "guard")),
    "guard": ("guard",),
    "filter": ("guard",),
    "guarded": ("rollout", "guard"),
    "judge": (),
    "observe": (),
    "rlaif": ("rollout", "policy"),
    "disentangled": ("rollout",),
    "evaluate": ("rollout",),
}


def check(config: RunConfig) -> None:
    """Raises: ConfigError."""
    check_values("", config)
    placed = _check_groups(config)
    _check_stages(config, placed)


def check_values(path: str, node: object) -> None:
    """Every key below ``path`` against its range, then what each dataclass says about its own keys
    together. Raises: ConfigError naming the full key.
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


def _check_groups(config: RunConfig) -> dict[str, str]:
    placed: dict[str, str] = {}
    for group, settings in config.groups.items():
        for role in settings.roles:
            if role in placed:
                raise ConfigError(
                    f"groups.{group}.roles: {role!r} is already in group {placed[role]!r}"
                )
            placed[role] = group
        alone = [role for role in ENGINES if role in settings.roles]
        if alone and len(settings.roles) > 1:
            raise ConfigError(
                f"groups.{group}.roles: {alone[0]} must have its processes to itself "
                "(vLLM changes the thread settings of its process)"
            )
    return placed


def _check_stages(config: RunConfig, placed: dict[str, str]) -> None:
    earlier: dict[str, Any] = {}
    for name, stage in config.stages.items():
        for key, source in references(stage).items():
            _check_reference(f"stages.{name}.{key}", key.split(".")[0], source, earlier)
        for role in (*NEEDED[stage.kind], *_asked_for(stage, earlier)):
            if role not in placed:
                raise ConfigError(f"groups: stage {name!r} ({stage.kind}) needs the role {role!r}")
        if isinstance(stage, SftStage) and stage.filter in earlier:
            filtered = earlier[stage.filter].split
            if filtered != stage.split:
                raise ConfigError(
                    f"stages.{name}.filter: {stage.filter!r} judges the split {filtered!r}, "
                    f"this stage learns from {stage.split!r}"
                )
        if isinstance(stage, SafeRlhfStage):
            _check_safe_rlhf(config, name, stage)
        if isinstance(stage, EvaluateStage | GuardedStage | DisentangledStage | RlaifStage):
            _check_lengths(config, f"stages.{name}", stage.max_new_tokens)
        earlier[name] = stage


def _check_reference(where: str, key: str, source: str, earlier: Mapping[str, Any]) -> None:
    """An earlier stage of a fitting kind, one of its rounds, or what is on disk."""
    name, _, part = source.partition("/")
    stage = earlier.get(name)
    if stage is None:
        found = Path(source).exists() if key == "conversations" else Path(source).is_dir()
        if key == "judge" or not found:
            raise ConfigError(
                f"{where}: {source!r} is neither an earlier stage "
                f"({', '.join(sorted(earlier)) or 'there is none'})"
                + (" of this recipe" if key == "judge" else " nor on disk")
            )
        return
    if stage.kind not in KINDS[key]:
        raise ConfigError(
            f"{where}: {source!r} is a stage of kind {stage.kind}, "
            f"what is needed is one of {', '.join(KINDS[key])}"
        )
    rounds = [f"round-{n + 1}" for n in range(getattr(stage, "rounds", 0))]
    if part and (stage.kind != "rlaif" or part not in rounds):
        there = f"it has {', '.join(rounds)}" if stage.kind == "rlaif" else "it has no parts"
        raise ConfigError(f"{where}: {name!r} made no {part!r}; {there}")


def _asked_for(stage: Any, earlier: Mapping[str, Any]) -> list[str]:
    """Roles a stage needs because of what it names."""
    roles = [role for role in ("cost", "guard") if getattr(stage, role, "")]
    judge = stage if isinstance(stage, JudgeStage) else earlier.get(getattr(stage, "judge", ""))
    return roles + ["judge"] * (judge is not None and bool(judge.model))


def references(stage: object) -> dict[str, str]:
    """Keys of a stage that name an artefact, with what they name."""
    found: dict[str, str] = {}
    for key in KINDS:
        named = getattr(stage, key, "")
        if isinstance(named, dict):
            found |= {f"{key}.{name}": source for name, source in named.items()}
        elif named and (key, named) != ("init", "tiny"):
            found[key] = named
    return found


def _check_safe_rlhf(config: RunConfig, name: str, stage: SafeRlhfStage) -> None:
    _check_lengths(config, f"stages.{name}.ppo", stage.ppo.max_new_tokens)
    if stage.train.dtype != config.engine.dtype:
        raise ConfigError(
            f"engine.dtype: {config.engine.dtype} differs from stages.{name}.train.dtype "
            f"{stage.train.dtype}; engine and trainer must compute in the same type"
        )


def _check_lengths(config: RunConfig, where: str, max_new_tokens: int) -> None:
    longest = config.data.max_prompt_tokens + max_new_tokens
    if longest > config.engine.max_model_len:
        raise ConfigError(
            f"engine.max_model_len: {config.engine.max_model_len} is less than "
            f"data.max_prompt_tokens + {where}.max_new_tokens = {longest}"
        )

"""Checks that span sections of a recipe. Each failure names the key and what to write instead."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

from rlsys.config.schema import RunConfig
from rlsys.config.stages import (
    DpoStage,
    EvaluateStage,
    FilterStage,
    GuardedStage,
    GuardStage,
    SafeRlhfStage,
    ScorerStage,
    SftStage,
)
from rlsys.errors import ConfigError

TRAINING_ROLES = ("policy", "reference", "reward", "cost", "reward_critic", "cost_critic", "guard")
ENGINES = ("rollout", "judge")
ROLES = (*ENGINES, *TRAINING_ROLES)
# What a key that names a stage may name.
POLICIES = ("sft", "dpo", "safe_rlhf")
KINDS = {
    "init": POLICIES,
    "policy": POLICIES,
    "policies": POLICIES,
    "reward": ("reward",),
    "cost": ("cost",),
    "guard": ("guard",),
    "filter": ("filter",),
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
    "evaluate": ("rollout",),
}


def check(config: RunConfig) -> None:
    """Raises: ConfigError."""
    _check_values("", config)
    placed = _check_groups(config)
    _check_stages(config, placed)


def _check_values(path: str, node: object) -> None:
    """What every dataclass of the recipe has to say about itself, under its full key."""
    if isinstance(node, dict):
        parts = node
    elif is_dataclass(node):
        parts = {field.name: getattr(node, field.name) for field in fields(node)}
    else:
        return
    if hasattr(node, "check"):
        try:
            node.check()
        except ConfigError as error:
            raise ConfigError(f"{path}{error}") from error
    for key, value in parts.items():
        _check_values(f"{path}{key}.", value)


def _check_groups(config: RunConfig) -> dict[str, str]:
    placed: dict[str, str] = {}
    for group, settings in config.groups.items():
        for role in settings.roles:
            if role not in ROLES:
                raise ConfigError(
                    f"groups.{group}.roles: {role!r} is not one of {', '.join(ROLES)}"
                )
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
    earlier: dict[str, str] = {}
    for name, stage in config.stages.items():
        judged = isinstance(stage, EvaluateStage | GuardedStage) and stage.cost
        judge = ("cost",) if judged else ()
        for role in (*NEEDED[stage.kind], *judge):
            if role not in placed:
                raise ConfigError(f"groups: stage {name!r} ({stage.kind}) needs the role {role!r}")
        for key, source in references(stage).items():
            if source not in earlier and not Path(source).is_dir():
                raise ConfigError(
                    f"stages.{name}.{key}: {source!r} is neither an earlier stage "
                    f"({', '.join(sorted(earlier)) or 'there is none'}) nor a folder"
                )
            wanted = KINDS[key.split(".")[0]]
            if source in earlier and earlier[source] not in wanted:
                raise ConfigError(
                    f"stages.{name}.{key}: {source!r} is a stage of kind {earlier[source]}, "
                    f"what is needed is one of {', '.join(wanted)}"
                )
        if isinstance(stage, SftStage) and stage.filter in earlier:
            filtered = config.stages[stage.filter].split
            if filtered != stage.split:
                raise ConfigError(
                    f"stages.{name}.filter: {stage.filter!r} judges the split {filtered!r}, "
                    f"this stage learns from {stage.split!r}"
                )
        if isinstance(stage, SafeRlhfStage):
            _check_safe_rlhf(config, name, stage)
        if isinstance(stage, EvaluateStage | GuardedStage):
            _check_lengths(config, f"stages.{name}", stage.max_new_tokens)
        earlier[name] = stage.kind


def references(stage: object) -> dict[str, str]:
    """Keys of a stage that name an artefact, with what they name."""
    if isinstance(stage, SftStage):
        init = {} if stage.init == "tiny" else {"init": stage.init}
        return init | ({"filter": stage.filter} if stage.filter else {})
    if isinstance(stage, FilterStage):
        return {"guard": stage.guard}
    if isinstance(stage, DpoStage | ScorerStage | GuardStage):
        return {"init": stage.init}
    if isinstance(stage, GuardedStage):
        named = {"policy": stage.policy, "guard": stage.guard}
        return named | ({"cost": stage.cost} if stage.cost else {})
    if isinstance(stage, SafeRlhfStage):
        return {"policy": stage.policy, "reward": stage.reward, "cost": stage.cost}
    assert isinstance(stage, EvaluateStage)
    named = {f"policies.{k}": v for k, v in stage.policies.items()}
    return named | ({"cost": stage.cost} if stage.cost else {})


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

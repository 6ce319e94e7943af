"""Handles of rollout engines for stages."""

from __future__ import annotations

from rlsys.data.slice import RowKind
from rlsys.roles.factory import RowSource
from rlsys.roles.rollout import ROLE as ROLLOUT
from rlsys.roles.rollout import RolloutHandle, RolloutSpec
from rlsys.stages.context import Context


def rollout_handle(context: Context, max_new_tokens: int, temperature: float) -> RolloutHandle:
    return RolloutHandle(
        context.group(ROLLOUT.name),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        chunk_prompts=context.config.engine.chunk_prompts,
    )


def rollout_of(
    context: Context,
    model: str,
    version: int,
    split: str,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> RolloutHandle:
    """Engines with the weights of a checkpoint, on the prompts of a split."""
    data = context.data.slice(split, RowKind.PROMPTS)
    return rollout_on(context, model, version, data, max_new_tokens, temperature)


def rollout_on(
    context: Context,
    model: str,
    version: int,
    data: RowSource,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> RolloutHandle:
    """Engines with the weights of a checkpoint, on any rows."""
    config, limits = context.config, context.config.timeouts
    rollout = rollout_handle(context, max_new_tokens, temperature)
    spec = RolloutSpec(model, data, config.engine, config.dtype)
    rollout.create(spec).result(limits.start)
    rollout.load_checkpoint(model, version).result(limits.sync)
    return rollout

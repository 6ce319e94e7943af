"""Rollout engines as evaluating and sampling stages use them."""

from __future__ import annotations

from actors.proxies import RemoteRollout
from actors.recipe import Context
from rlsys.data.slice import RowKind
from rlsys.engines.workbench import RoleSpec


def make_rollout(context: Context, max_new_tokens: int, temperature: float) -> RemoteRollout:
    return RemoteRollout(
        context.cluster.by_role["rollout"],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        chunk_prompts=context.config.engine.chunk_prompts,
    )


def rollout_of(
    context: Context, model: str, version: int, max_new_tokens: int, temperature: float = 1.0
) -> RemoteRollout:
    """Engines with the weights of a checkpoint, on the evaluation split."""
    limits = context.config.timeouts
    rollout = make_rollout(context, max_new_tokens, temperature)
    data = context.data.slice("evaluation", RowKind.PROMPTS)
    spec = RoleSpec("rollout", model, data, engine=context.config.engine)
    rollout.create(spec).result(limits.start)
    rollout.load_checkpoint(model, version).result(limits.sync)
    return rollout

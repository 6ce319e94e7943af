"""Operations and an estimate of the time of one iteration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlsys.config.schema import RunConfig
from rlsys.plan.load import Lengths, cut
from rlsys.plan.model import Model, torch_dtype
from rlsys.plan.roles import RolePlan, stage_roles

UTILIZATION = 0.4
"""Share of a device's peak that training and prefill reach (40 % is usual for 7B models)."""
BANDWIDTH_SHARE = 0.6
SYNC_BYTES_PER_S = 1e9


@dataclass(frozen=True)
class Device:
    """Peak of dense bfloat16 (CPU: as measured), operations and bytes of memory per second."""

    name: str
    flops: float
    bandwidth: float


DEVICES = {
    device.name: device
    for device in (
        Device("a100", 312e12, 2.0e12),
        Device("h100", 989e12, 3.35e12),
        Device("h200", 989e12, 4.8e12),
        Device("a10", 125e12, 0.6e12),
        Device("l4", 121e12, 0.3e12),
        Device("4090", 165e12, 1.0e12),
    )
}


def measured_cpu(dtype: str, size: int = 1024) -> Device:
    """This machine, by a product of two square matrices and a copy of one."""
    kind = torch_dtype(dtype)
    left, right = torch.ones(size, size, dtype=kind), torch.ones(size, size, dtype=kind)
    left @ right
    started = time.perf_counter()
    for _ in range(3):
        left @ right
    seconds = max((time.perf_counter() - started) / 3, 1e-9)
    large = torch.ones(1 << 24, dtype=kind)
    started = time.perf_counter()
    large.clone()
    copied = max(time.perf_counter() - started, 1e-9)
    # What is measured is reached, not a peak.
    return Device(
        "this CPU",
        2 * size**3 / seconds / UTILIZATION,
        2 * large.nbytes / copied / BANDWIDTH_SHARE,
    )


def forward_flops(model: Model, tokens: int, context: int, patches: int, answers: int) -> float:
    """2 operations per parameter and token, attention beside (causal: half of the context), the
    vision tower per patch, the head per answer token.
    """
    shape = model.shape
    language = 2 * (model.count("language") - shape.vocab * shape.hidden) * tokens
    attention = 4 * shape.layers * shape.query * (context / 2) * tokens
    tower = 2 * (model.count("vision") + model.count("projector") / max(shape.patches, 1)) * patches
    return language + attention + tower + 2 * shape.vocab * shape.hidden * answers


def training_flops(forward: float, *, adapters: bool, checkpointing: bool) -> float:
    """Backward costs twice the forward pass, with frozen matrices once; checkpointing repeats the
    forward pass.
    """
    return forward * (1 + (1 if adapters else 2) + (1 if checkpointing else 0))


def decode_seconds(
    steps: int, waves: int, weight_bytes: float, cache_bytes: float, device: Device
) -> float:
    """Every step reads all weights and the cache once."""
    return waves * steps * (weight_bytes + cache_bytes) / (device.bandwidth * BANDWIDTH_SHARE)


@dataclass(frozen=True)
class Work:
    """One role in one iteration (of a supervised stage: a step). tokens, flops: of one rank."""

    role: str
    phase: str
    tokens: int
    flops: float
    seconds: float


def role_work(
    config: RunConfig, role: RolePlan, lengths: Lengths, ranks: int, device: Device
) -> Work:
    """What one rank of a role computes."""
    if role.engine is not None:
        return _generation(config, role, lengths, ranks, device)
    sizes, shape = cut(role, lengths, ranks), role.model.shape
    images = -(-role.batch.prompts // ranks)
    answers = sizes.tokens if role.batch.logits else 0
    share = role.batch.answer / (lengths.prompt + role.batch.answer)
    forward = forward_flops(
        role.model,
        sizes.tokens,
        lengths.prompt + role.batch.answer,
        images * lengths.images * shape.patches,
        int(answers * share),
    )
    flops, phase = forward, "forward"
    if role.train is not None:
        phase = "update"
        flops = role.batch.steps * training_flops(
            forward,
            adapters=bool(role.train.lora_rank),
            checkpointing=role.train.gradient_checkpointing,
        )
    tokens = sizes.tokens * (role.batch.steps if role.train else 1)
    return Work(role.role, phase, tokens, flops, flops / (device.flops * UTILIZATION))


def _generation(
    config: RunConfig, role: RolePlan, lengths: Lengths, ranks: int, device: Device
) -> Work:
    assert role.engine is not None
    batch, shape, itemsize = role.batch, role.model.shape, torch_dtype(config.dtype).itemsize
    rows, prompts = -(-batch.rows // ranks), -(-batch.prompts // ranks)
    chunk = getattr(role.engine, "chunk_prompts", rows) * -(-batch.rows // batch.prompts)
    together = max(1, min(role.engine.max_num_seqs, chunk, rows))
    patches = prompts * lengths.images * shape.patches
    prompt_tokens = prompts * lengths.prompt
    flops = forward_flops(role.model, prompt_tokens, lengths.prompt, patches, prompts)
    flops += forward_flops(role.model, rows * batch.answer, lengths.prompt, 0, rows * batch.answer)
    cache = 2 * shape.layers * shape.key_value * itemsize * (lengths.prompt + batch.answer / 2)
    seconds = flops / (device.flops * UTILIZATION) + decode_seconds(
        batch.answer, -(-rows // together), role.model.total * itemsize, together * cache, device
    )
    return Work(role.role, "sampling", prompt_tokens + rows * batch.answer, flops, seconds)


@dataclass(frozen=True)
class Iteration:
    """work: by role; sync: bytes of weights sent to the engines."""

    work: tuple[Work, ...]
    groups: Mapping[str, str]
    sync: float = 0

    @property
    def seconds(self) -> float:
        """Sampling, then all groups beside each other and the roles of a group one by one."""
        sampled = sum(each.seconds for each in self.work if each.phase == "sampling")
        by_group: dict[str, float] = {}
        for each in self.work:
            if each.phase != "sampling":
                group = self.groups[each.role]
                by_group[group] = by_group.get(group, 0.0) + each.seconds
        return sampled + max(by_group.values(), default=0.0) + self.sync / SYNC_BYTES_PER_S

    @property
    def flops(self) -> float:
        return sum(each.flops for each in self.work)


def _sent(policy: RolePlan) -> int:
    """Parameters of a sync: with adapters the layers that they change, taken to be q, k, v, o."""
    shape = policy.model.shape
    if policy.train is None or not policy.train.lora_rank:
        return policy.model.trained
    return 2 * shape.layers * shape.hidden * (shape.query + shape.key_value)


def stage_iteration(config: RunConfig, name: str, lengths: Lengths, device: Device) -> Iteration:
    """An iteration of a stage; of a supervised one, an optimiser step. Trained policies and critics
    also run forward once before they are updated.
    """
    placed = {role: group for group, each in config.groups.items() for role in each.roles}
    roles = stage_roles(config, name, lengths.answer)
    work: list[Work] = []
    sampled = any(role.role == "rollout" for role in roles)
    for role in roles:
        ranks = config.groups[placed[role.role]].ranks
        work.append(role_work(config, role, lengths, ranks, device))
    policy = next((role for role in roles if role.role == "policy"), None)
    sync = 0.0
    if sampled and policy is not None:
        sync = _sent(policy) * torch_dtype(config.dtype).itemsize
    return Iteration(tuple(work), placed, sync)

"""Memory of every process in every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.config.schema import GroupConfig, RunConfig
from rlsys.data.encoded import EncodedCache
from rlsys.engines.weights import BUCKET_BYTES
from rlsys.micro_batches import Tokens, micro_batches, packed_rows
from rlsys.plan import memory
from rlsys.plan.model import torch_dtype
from rlsys.plan.roles import RolePlan, stage_roles

GB = 1e9
ENGINE_WORKSPACE = 2 * GB
"""What vLLM needs on a GPU beside weights and cache: a profile run's activations, CUDA graphs."""
CONTEXT = 0.6 * GB
"""CUDA context and libraries of a process on a GPU."""


@dataclass(frozen=True)
class Lengths:
    """prompt, answer: the longest, tokens; images: visual tokens of a prompt."""

    prompt: int
    answer: int
    images: int


def default_lengths(
    config: RunConfig, prompt: int = 0, answer: int = 0, images: int = 0
) -> Lengths:
    """The recipe's limits where nothing is given."""
    prompt = prompt or config.data.max_prompt_tokens
    room = max(config.engine.max_model_len - config.data.max_prompt_tokens, 1)
    return Lengths(prompt, answer or room, min(images or prompt, prompt))


@dataclass(frozen=True)
class MicroBatches:
    """Of an optimiser step, of the most loaded rank. tokens: of them all; largest: of one; answers:
    of that one.
    """

    count: int
    tokens: int
    largest: int
    answers: int
    images: int


def cut(role: RolePlan, lengths: Lengths, ranks: int) -> MicroBatches:
    """How a batch of longest rows is cut. images: prompts in the largest micro-batch."""
    batch = role.batch
    answer = min(batch.answer, lengths.answer) if batch.answer else lengths.answer
    tokens = [
        Tokens(row % batch.prompts, lengths.prompt, (answer,) * batch.answers)
        for row in range(batch.rows)
    ]
    width = role.model.shape.shared
    dealt = micro_batches(
        range(batch.rows), tokens, token_budget=role.token_budget, world=ranks, width=width
    )
    sizes = [[_size(micro, tokens, width) for micro in rank if micro] for rank in dealt]
    most = max(sizes, key=lambda rank: sum(size[0] for size in rank))
    largest, answers, images = max(size for rank in sizes for size in rank)
    return MicroBatches(len(most), sum(size[0] for size in most), largest, answers, images)


def _size(rows: Sequence[int], tokens: Sequence[Tokens], width: int) -> tuple[int, int, int]:
    """Padded tokens, answer tokens and prompts."""
    single = [tokens[r]._replace(answers=(a,)) for r in rows for a in tokens[r].answers]
    packed = packed_rows(single, width)
    padded = len(packed) * max(
        single[part[0]].start + sum(single[row].answers[0] for row in part) for part in packed
    )
    return padded, sum(row.answers[0] for row in single), len({row.prompt for row in single})


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of a role on one rank; transient: activations, logits and copies during a call; shared:
    of its weights, those that other roles may hold too.
    """

    role: RolePlan
    held: memory.Held
    activations: float
    logits: float
    cache: float = 0
    sync: float = 0
    ptx: float = 0
    shared: float = 0

    @property
    def transient(self) -> float:
        """Largest of what is never there together: backward pass, optimiser step, sync. From the
        second micro-batch of a step on all gradients are there beside all activations.
        """
        backward = self.held.gradients + self.activations + self.logits + self.ptx
        step = self.held.update if self.role.train else 0
        return max(self.held.gathered + max(backward, step), self.sync)


def role_memory(role: RolePlan, lengths: Lengths, ranks: int, dtype: str) -> RoleMemory:
    """Of a role that trains or only runs forward in transformers."""
    itemsize, model, train = torch_dtype(dtype).itemsize, role.model, role.train
    sizes = cut(role, lengths, ranks)
    patches = lengths.images * sizes.images * model.shape.patches
    vocab = model.shape.vocab if role.batch.logits else 0
    logits = memory.logit_bytes(vocab, itemsize, sizes.answers, training=train is not None)
    forward = memory.forward_bytes(model.shape, itemsize, sizes.largest, patches)
    base = [part for part in model.parts if role.batch.logits or part.name != "head"]
    shared = itemsize * sum(part.total - part.trained for part in base)
    if train is None:
        held = memory.frozen_state(model.total, ranks=ranks, itemsize=itemsize, frozen=role.frozen)
        return RoleMemory(role, held, forward, logits, shared=shared)
    held = memory.trained_state(
        model.total, model.trained, ranks=ranks, itemsize=itemsize, engine=train.engine,
        zero_stage=train.zero_stage, offload=train.offload,
    )  # fmt: skip
    kept = memory.activation_bytes(
        model.shape, itemsize, sizes.largest, adapters=bool(train.lora_rank),
        checkpointing=train.gradient_checkpointing,
    )  # fmt: skip
    if model.trains("vision"):
        kept += memory.tower_activation_bytes(
            model.shape, itemsize, patches, checkpointing=train.gradient_checkpointing
        )
    sync = 0.0
    if role.syncs:
        adapters = bool(train.lora_rank)
        largest = model.shape.hidden * model.shape.query if adapters else model.largest
        sync = memory.bucket_bytes(largest, itemsize, BUCKET_BYTES, adapters=adapters)
    ptx = memory.FP32 * model.trained if role.ptx_norm else 0
    return RoleMemory(role, held, max(kept, forward), logits, sync=sync, ptx=ptx, shared=shared)


def engine_memory(role: RolePlan, lengths: Lengths, dtype: str) -> RoleMemory:
    """Of a vLLM engine: cache is what its sequences need at their longest, or, where they are more
    than its cache holds, at least one of them.
    """
    assert role.engine is not None
    itemsize, engine = torch_dtype(dtype).itemsize, role.engine
    longest = min(engine.max_model_len, lengths.prompt + role.batch.answer)
    sequences = min(engine.max_num_seqs, role.batch.rows)
    cache = memory.cache_bytes(role.model.shape, itemsize, sequences * longest)
    held = memory.frozen_state(role.model.total, ranks=1, itemsize=itemsize)
    return RoleMemory(role, held, 0, 0, cache=cache)


@dataclass(frozen=True)
class ProcessMemory:
    """One rank of a group in a stage. capacity: bytes it may use on its GPU, 0 on CPU."""

    group: str
    settings: GroupConfig
    roles: tuple[RoleMemory, ...]
    utilization: float = 0

    @property
    def resident(self) -> float:
        """What roles share is there once."""
        shared = [each.shared for each in self.roles if each.role.shares]
        every = sum(each.held.resident + each.cache for each in self.roles)
        return every - sum(shared) + max(shared, default=0)

    @property
    def transient(self) -> float:
        """Of the role with the most: a process runs one call at a time."""
        return max((each.transient for each in self.roles), default=0)

    @property
    def total(self) -> float:
        """Most at once on the device."""
        return self.resident + self.transient

    @property
    def host(self) -> float:
        """In the host's memory, of this rank: what is offloaded, and encoded prompts."""
        return sum(each.held.host for each in self.roles) + EncodedCache().limit


def stage_memory(config: RunConfig, name: str, lengths: Lengths) -> list[ProcessMemory]:
    """Every group that a stage uses. Raises: ConfigError, ModelError."""
    placed = {role: group for group, each in config.groups.items() for role in each.roles}
    found: dict[str, list[RoleMemory]] = {}
    utilization: dict[str, float] = {}
    for role in stage_roles(config, name, lengths.answer):
        group = placed[role.role]
        ranks = config.groups[group].ranks
        if role.engine is None:
            found.setdefault(group, []).append(role_memory(role, lengths, ranks, config.dtype))
        else:
            found.setdefault(group, []).append(engine_memory(role, lengths, config.dtype))
            utilization[group] = role.engine.gpu_memory_utilization
    return [
        ProcessMemory(group, config.groups[group], tuple(roles), utilization.get(group, 0.0))
        for group, roles in found.items()
    ]

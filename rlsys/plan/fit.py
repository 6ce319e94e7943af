"""Whether a stage fits its devices, and which keys would make it fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.config.check import check
from rlsys.config.schema import RunConfig, TrainConfig
from rlsys.errors import ConfigError
from rlsys.plan.load import CONTEXT, ENGINE_WORKSPACE, Lengths, ProcessMemory, stage_memory


@dataclass(frozen=True)
class Devices:
    """Bytes of a GPU, and of the host's memory; 0: unknown."""

    gpu: float
    host: float = 0


@dataclass(frozen=True)
class Fit:
    """A process beside what it may use, bytes; capacity 0: unknown. why: what is short."""

    process: ProcessMemory
    need: float
    capacity: float
    why: str = ""

    @property
    def fits(self) -> bool:
        return not self.capacity or self.need <= self.capacity

    @property
    def missing(self) -> float:
        return max(0.0, self.need - self.capacity) if self.capacity else 0.0


def fit(process: ProcessMemory, devices: Devices) -> Fit:
    """One rank of a group on its GPU, or in its share of the host's memory."""
    gpus = process.settings.gpus
    if not gpus:
        return Fit(process, process.total, devices.host and devices.host / process.settings.ranks)
    # A rank uses one GPU, also where it reserves several.
    capacity = min(gpus, 1.0) * devices.gpu
    if process.utilization:
        return _engine(process, devices, capacity)
    return Fit(process, process.total + CONTEXT, capacity)


def _engine(process: ProcessMemory, devices: Devices, capacity: float) -> Fit:
    """A vLLM engine takes its share of the GPU whatever it needs; too small a share is an error of
    vLLM's, one larger than the reservation takes the memory of others.
    """
    taken = process.utilization * devices.gpu
    weights = sum(each.held.weights for each in process.roles)
    one = max(each.cache / max(_sequences(each), 1) for each in process.roles)
    least = weights + ENGINE_WORKSPACE + one
    if least > taken:
        return Fit(process, least, taken, "the engine's share holds no single sequence")
    return Fit(process, taken, capacity, "the engine takes more than its group reserves")


def _sequences(each: Any) -> int:
    return min(each.role.engine.max_num_seqs, each.role.batch.rows)


def sequences_at_once(process: ProcessMemory, devices: Devices) -> int:
    """Longest sequences that an engine's cache holds together on a GPU."""
    weights = sum(each.held.weights for each in process.roles)
    free = process.utilization * devices.gpu - weights - ENGINE_WORKSPACE
    one = max(each.cache / max(_sequences(each), 1) for each in process.roles)
    return max(0, int(free / one)) if one else 0


def node_need(fits: Sequence[Fit]) -> tuple[float, float]:
    """Bytes of all GPUs, and of the host's memory, by all ranks of a stage."""
    gpu = sum(
        each.need * each.process.settings.ranks for each in fits if each.process.settings.gpus
    )
    host = sum(
        (each.process.host + (0 if each.process.settings.gpus else each.process.total))
        * each.process.settings.ranks
        for each in fits
    )
    return gpu, host


@dataclass(frozen=True)
class Advice:
    """A change of one key, what a rank of the group saves by it, and whether it then fits."""

    change: str
    saves: float
    fits: bool


Change = tuple[str, Callable[[RunConfig], None]]


def advice(
    config: RunConfig, name: str, lengths: Lengths, found: Fit, devices: Devices
) -> list[Advice]:
    """Changes of single keys by which the group would need less, the largest saving first."""
    result = []
    for change, apply in _changes(config, name, found):
        changed = copy.deepcopy(config)
        apply(changed)
        try:
            check(changed)
        except ConfigError:
            continue
        after = {each.group: each for each in stage_memory(changed, name, lengths)}
        again = fit(after[found.process.group], devices)
        if (saves := found.need - again.need) > 0.01 * found.need or again.fits:
            result.append(Advice(change, saves, again.fits))
    return sorted(result, key=lambda each: -each.saves)


def _changes(config: RunConfig, name: str, found: Fit) -> Iterator[Change]:
    stage, group = config.stages[name], found.process.group
    if found.process.utilization:
        yield from _engine_changes(config)
        return
    for key in ("train", "critic_train"):
        train = getattr(stage, key, None)
        if isinstance(train, TrainConfig):
            yield from _train_changes(f"stages.{name}.{key}", train)
    if getattr(stage, "frozen", "") == "whole":
        for value in ("sharded", "offload"):
            yield _set(f"stages.{name}.frozen", value)
    if getattr(getattr(stage, "ppo", None), "ptx_coef", 0) and stage.ppo.ptx_grad_norm:
        yield _set(f"stages.{name}.ppo.ptx_grad_norm", False)
    yield _set(f"groups.{group}.ranks", 2 * config.groups[group].ranks)


def _train_changes(path: str, train: TrainConfig) -> Iterator[Change]:
    if not train.gradient_checkpointing:
        yield _set(f"{path}.gradient_checkpointing", True)
    if train.micro_batch_tokens > 1024:
        yield _set(f"{path}.micro_batch_tokens", train.micro_batch_tokens // 2)
    if train.zero_stage < 3:
        yield _set(f"{path}.zero_stage", 3)
    if train.offload == "none":
        yield _set(f"{path}.offload", "optimizer")
    if train.offload != "parameters":
        yield _set(f"{path}.offload", "parameters")
    if not train.lora_rank and not train.freeze:
        yield _set(f"{path}.lora_rank", 16)


def _engine_changes(config: RunConfig) -> Iterator[Change]:
    engine = config.engine
    for share in (0.9, engine.gpu_memory_utilization / 2):
        yield _set("engine.gpu_memory_utilization", round(share, 2))
    yield _set("engine.max_model_len", engine.max_model_len // 2)


def _set(path: str, value: Any) -> Change:
    def apply(config: RunConfig) -> None:
        node: Any = config
        *above, last = path.split(".")
        for each in above:
            node = node[each] if isinstance(node, dict) else getattr(node, each)
        setattr(node, last, value)

    return f"{path}={str(value).lower() if isinstance(value, bool) else value}", apply

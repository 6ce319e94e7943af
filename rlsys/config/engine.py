"""Keys of vLLM engines, and of the check that they compute what the trainer does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlsys.config.engine_arguments import check_arguments
from rlsys.config.keys import key

# How weights reach engines.
TRANSPORT_CHOICES = AUTO, SHM, RAY, BROADCAST = ("auto", "shm", "ray", "broadcast")


@dataclass
class EngineConfig:
    """vLLM engines."""

    max_num_seqs: int = key(64, "Sequences decoded together per engine.", ge=1)
    max_model_len: int = key(512, "Longest prompt with its answer, tokens.", ge=2)
    kv_cache_mib: int = key(64, "KV cache per engine on CPU, MiB.", ge=1)
    gpu_memory_utilization: float = key(
        0.5, "Share of a GPU's memory per engine.", gt=0, le=1, affects_result=False
    )
    extra: dict[str, Any] = key(
        {},
        "More arguments of vllm.LLM, such as tensor_parallel_size; none of those that rlsys sets.",
    )

    def check(self) -> None:
        check_arguments(self.extra)


@dataclass
class RolloutEngineConfig(EngineConfig):
    """vLLM rollout engines."""

    chunk_prompts: int = key(
        8, "Prompts (with all samples) per chunk; scoring starts on each finished chunk.", ge=1
    )
    transport: str = key(
        AUTO,
        "How weights reach the engines: shared memory (one node), Ray's object store, or broadcast "
        "groups (gloo, NCCL); auto: the first where all engines are on the node of the policy's "
        "rank 0, else the second.",
        choices=TRANSPORT_CHOICES,
        affects_result=False,
    )


@dataclass
class GapConfig:
    """Bounds of the gap between engine and trainer log-probabilities of the same tokens."""

    warn: float = key(1e-4, "Largest expected gap in float32, nats; above it a warning.", gt=0)
    warn_bfloat16: float = key(0.1, "The same in bfloat16.", gt=0)
    stop_factor: float = key(10.0, "The run stops at this multiple of the expected gap.", ge=1)

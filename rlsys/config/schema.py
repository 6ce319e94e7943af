"""Every key of a recipe but those of its stages. A string under a field is its doc.

Plain dataclasses for OmegaConf; what one class alone can tell to be wrong, its ``check`` raises,
naming the key inside it. ``rlsys.config.check`` calls them, and checks across classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from rlsys.config.rules import at_least, one_of, positive
from rlsys.errors import ConfigError


@dataclass
class DataConfig:
    """Where prompts and preference pairs come from."""

    source: str = MISSING
    "A folder with <split>.jsonl, .json or .parquet, or the name of a hub's dataset or of a world."
    sizes: dict[str, int] = field(default_factory=dict)
    "Built-in worlds only: rows to draw, by split; every split that a stage reads needs a number."
    validation_split: str = "validation"
    evaluation_split: str = "evaluation"
    max_prompt_tokens: int = 512
    "After the image placeholder is expanded; a longer prompt is an error naming its row."


@dataclass
class GroupConfig:
    """A set of processes (ranks) and the roles each of them hosts."""

    roles: list[str] = MISSING
    "rollout; any of policy, reference, reward, cost, reward_critic, cost_critic, guard; or judge."
    ranks: int = 1
    cpus: float = 1.0
    "CPUs reserved per rank, fractions allowed."
    gpus: float = 0.0
    threads: int = 1
    "Torch threads per rank."

    def check(self) -> None:
        at_least(1, ranks=self.ranks, threads=self.threads)


@dataclass
class ClusterConfig:
    """Which Ray to use."""

    address: str = "auto"
    "auto: the cluster this process was submitted to, else a private one here; or host:port."
    cpus: int = 0
    "CPUs of the private Ray; 0 means all of this machine."
    node_ip: str = "127.0.0.1"
    "Interface of the private Ray and of collectives inside one node."


@dataclass
class TimeoutConfig:
    """Deadlines in seconds. Nothing waits without one."""

    start: float = 180.0
    "Processes placed and models loaded."
    call: float = 300.0
    "One call of one role (a chunk scored, an update)."
    collective: float = 60.0
    "One collective among the ranks of a group."
    sync: float = 60.0
    "One weight sync over all engines."

    def check(self) -> None:
        positive(start=self.start, call=self.call, collective=self.collective, sync=self.sync)


@dataclass
class TrackerConfig:
    wandb: str = "offline"
    "offline, online or disabled."
    project: str = "rlsys"

    def check(self) -> None:
        one_of("wandb", self.wandb, ("offline", "online", "disabled"))


@dataclass
class EngineConfig:
    """vLLM rollout engines."""

    max_num_seqs: int = 64
    "Sequences decoded together per engine."
    max_model_len: int = 512
    kv_cache_mib: int = 64
    "KV cache per engine on CPU; on GPU gpu_memory_utilization rules."
    gpu_memory_utilization: float = 0.5
    dtype: str = "float32"
    chunk_prompts: int = 8
    "Prompts (with all their samples) per chunk; scoring starts on each finished chunk."
    transport: str = "shm"
    "How weights reach the engines: shm (shared memory, one node) or ray (object store)."
    extra: dict[str, Any] = field(default_factory=dict)
    "Passed to vllm.LLM as it stands."

    def check(self) -> None:
        one_of("transport", self.transport, ("shm", "ray"))
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        at_least(1, max_num_seqs=self.max_num_seqs, chunk_prompts=self.chunk_prompts)


@dataclass
class TinyConfig:
    """Sizes of a model made from scratch. Attention heads are 32 wide: vLLM's CPU minimum."""

    hidden: int = 128
    layers: int = 3
    vision_hidden: int = 96
    vision_layers: int = 2
    init_std: float = 0.1
    "Spread of the random weights. At this size the usual 0.02 takes several times as many steps."
    vocab: int = 768
    "Upper bound: byte-level BPE stops when the corpus offers no more merges."
    max_image_tokens: int = 16
    "Largest number of 28x28-pixel visual tokens an image is scaled down to."


@dataclass
class OptimConfig:
    """AdamW with warm-up."""

    lr: float = MISSING
    schedule: str = "constant"
    "constant or cosine (to a tenth of lr), after a linear warm-up."
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    grad_clip: float = 1.0

    def check(self) -> None:
        one_of("schedule", self.schedule, ("constant", "cosine"))
        if len(self.betas) != 2:
            raise ConfigError(f"betas: two numbers are needed, got {self.betas}")
        positive(grad_clip=self.grad_clip, lr=self.lr)


@dataclass
class TrainConfig:
    """How a role trains."""

    engine: str = "deepspeed"
    "deepspeed, or torch (plain data parallel, the reference the tests compare with)."
    zero_stage: int = 1
    dtype: str = "float32"
    micro_batch_tokens: int = 8192
    "Padded tokens per forward and backward pass; rows are binned under this budget."
    freeze: list[str] = field(default_factory=list)
    "Dotted-name components of the parameters to freeze, e.g. visual."
    lora_rank: int = 0
    "0: full fine-tuning. Above 0: PEFT adapters of this rank (policy only)."
    lora_alpha: float = 16.0
    lora_targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )

    def check(self) -> None:
        one_of("engine", self.engine, ("deepspeed", "torch"))
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"zero_stage: {self.zero_stage} is not one of 0, 1, 2, 3")


@dataclass
class GapConfig:
    """Engine against trainer, on the same tokens."""

    warn: float = 1e-4
    "Largest accepted difference of log-probabilities, nats; fp32 on both sides meets 1e-4."
    stop_factor: float = 10.0
    "Times `warn`: the run stops."


@dataclass
class AnsweringStage:
    """What every stage that answers the evaluation split is told."""

    cost: str = ""
    "Cost model that judges safety where the data has no oracle of its own."
    limit: int = 0
    "Prompts to answer; 0: all."
    max_new_tokens: int = 16

    def check(self) -> None:
        at_least(0, limit=self.limit)
        at_least(1, max_new_tokens=self.max_new_tokens)


@dataclass
class RunConfig:
    """A whole recipe."""

    name: str = MISSING
    seed: int = 0
    runs_dir: str = "runs"
    "Run directories and reusable artefacts go here."
    data: DataConfig = field(default_factory=DataConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    groups: dict[str, GroupConfig] = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    timeouts: TimeoutConfig = field(default_factory=TimeoutConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    stages: dict[str, Any] = MISSING
    "Name -> stage; run in the order written."

    def check(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ConfigError(f"name: {self.name!r} must be letters, digits, dots and dashes")

"""All keys of a recipe except those of its stages, with documentation and range.

Plain dataclasses for OmegaConf. The ``check`` of a class raises errors about combinations of its
keys; ``rlsys.config.check`` calls it, and checks across classes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from rlsys.config.failure import FailureConfig
from rlsys.config.keys import key
from rlsys.errors import ConfigError

DTYPES = ("float32", "bfloat16")
MAX_SEED = 2**32 - 1  # NumPy's


@dataclass
class DataConfig:
    """Where prompts and preference pairs come from."""

    source: str = key(
        MISSING,
        "A folder with <split>.jsonl, .json, .parquet or .arrow, also sharded or a folder per "
        "configuration; a dataset on a hub; or a built-in world.",
    )
    layout: str = key(
        "",
        "Layout of the records: llava, vlguard, spa_vl, beavertails_v or questions; empty: told by "
        "their columns.",
    )
    configs: list[str] = key([], "Configurations of the source to take, in order; none: all.")
    sizes: dict[str, int] = key(
        {},
        "Built-in worlds only: rows to draw, by split; every split that a stage reads needs one.",
        ge=20,
    )
    validation_split: str = key("validation", "Split that calibrates thresholds.")
    validation_share: float = key(
        0.1,
        "Share of the train split's pictures kept for validation, by the hash of their pixels, "
        "where the source has no such split and a stage reads it.",
        gt=0,
        lt=1,
    )
    min_usable: float = key(
        0.5,
        "Least share of a split's rows that must be usable; on fewer nothing is run.",
        ge=0,
        le=1,
    )
    evaluation_split: str = key(
        "evaluation",
        "Split of final measurements; what a stage is measured on, no stage learns from.",
    )
    max_prompt_tokens: int = key(
        512, "Longest prompt, image placeholder expanded; longer ones are left out.", ge=1
    )
    max_pixels: int = key(
        0,
        "Larger images are scaled down to as many pixels before any model's own processor sees "
        "them, the shape kept; 0: its own limits alone.",
        ge=0,
    )
    system_prompt: str = key(
        "", "System prompt of rows that have none of their own; empty: the chat template's."
    )
    blank_images: bool = key(
        False, "Every model sees plain grey pictures: what words alone can teach, as a control."
    )

    def check(self) -> None:
        for name in ("source", "validation_split", "evaluation_split"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: must not be empty")


@dataclass
class GroupConfig:
    """A set of processes (ranks) and the roles each of them hosts."""

    roles: list[str] = key(MISSING, "rollout alone, judge alone, or any others.")
    ranks: int = key(1, "Processes.", ge=1)
    cpus: float = key(1.0, "CPUs reserved per rank, fractions allowed.", ge=0.01)
    gpus: float = key(0.0, "GPUs per rank: a fraction, or a whole number.", ge=0)
    threads: int = key(1, "Torch threads per rank.", ge=1)

    def check(self) -> None:
        if not self.roles:
            raise ConfigError("roles: name at least one role")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(f"gpus: above 1 must be a whole number, got {self.gpus}")


@dataclass
class ClusterConfig:
    """Which Ray to use."""

    address: str = key(
        "auto",
        "auto: the cluster this process was submitted to, else a private one here; or host:port.",
    )
    cpus: int = key(0, "CPUs of the private Ray; 0: all of this machine.", ge=0)
    node_ip: str = key(
        "127.0.0.1", "Interface of the private Ray and of collectives inside one node."
    )


@dataclass
class TimeoutConfig:
    """Deadlines in seconds. Nothing waits without one."""

    start: float = key(180.0, "Processes placed and models loaded.", gt=0)
    call: float = key(300.0, "One call of one role (a chunk scored, an update).", gt=0)
    collective: float = key(60.0, "One collective among the ranks of a group.", gt=0)
    sync: float = key(60.0, "One weight sync over all engines.", gt=0)
    heartbeat: float = key(30.0, "Silence after which a process counts as dead.", gt=5)


@dataclass
class TrackerConfig:
    """Experiment tracker, besides the run directory."""

    wandb: str = key("offline", "Weights & Biases.", choices=("offline", "online", "disabled"))
    project: str = key("rlsys", "Project at Weights & Biases.")


@dataclass
class EngineConfig:
    """vLLM engines."""

    max_num_seqs: int = key(64, "Sequences decoded together per engine.", ge=1)
    max_model_len: int = key(512, "Longest prompt with its answer, tokens.", ge=2)
    kv_cache_mib: int = key(64, "KV cache per engine on CPU, MiB.", ge=1)
    gpu_memory_utilization: float = key(
        0.5, "Share of a GPU's memory per engine.", gt=0, le=1, affects_result=False
    )
    extra: dict[str, Any] = key({}, "Passed to vllm.LLM as it stands.")


@dataclass
class RolloutEngineConfig(EngineConfig):
    """vLLM rollout engines."""

    chunk_prompts: int = key(
        8, "Prompts (with all samples) per chunk; scoring starts on each finished chunk.", ge=1
    )
    transport: str = key(
        "auto",
        "How weights reach the engines: shared memory (one node), Ray's object store, or broadcast "
        "groups (gloo, NCCL); auto: the first where all engines are on the node of the policy's "
        "rank 0, else the second.",
        choices=("auto", "shm", "ray", "broadcast"),
        affects_result=False,
    )


@dataclass
class TinyConfig:
    """Sizes of a model made from scratch. Attention heads are 32 wide: vLLM's CPU minimum."""

    hidden: int = key(128, "Width of the language model.", ge=32, multiple_of=32)
    layers: int = key(3, "Layers of the language model.", ge=1)
    vision_hidden: int = key(96, "Width of the vision tower.", ge=32, multiple_of=32)
    vision_layers: int = key(2, "Layers of the vision tower.", ge=1)
    init_std: float = key(
        0.1, "Std of the initial weights; 0.02 would need several times the steps.", gt=0
    )
    # 256 bytes and seven special tokens are always in it.
    vocab: int = key(
        768, "Largest vocabulary; byte-level BPE may stop earlier, without merges left.", ge=263
    )
    max_image_tokens: int = key(
        16, "Most visual tokens (28x28 pixels) of an image; larger ones are scaled down.", ge=4
    )


@dataclass
class OptimConfig:
    """AdamW with warm-up."""

    lr: float = key(MISSING, "Peak learning rate.", gt=0)
    schedule: str = key(
        "constant",
        "After a linear warm-up; cosine falls to final_lr of lr.",
        choices=("constant", "cosine"),
    )
    final_lr: float = key(0.1, "cosine only: share of lr at the last step.", ge=0, le=1)
    warmup_steps: int = key(0, "Optimiser steps of linear warm-up.", ge=0)
    warmup_ratio: float = key(
        0.0, "Warm-up as a share of all steps, rounded up, instead of warmup_steps.", ge=0, lt=1
    )
    weight_decay: float = key(0.0, "Decoupled weight decay of all trained weights.", ge=0)
    betas: list[float] = key([0.9, 0.95], "Adam's decay rates of the two moments.", ge=0, lt=1)
    grad_clip: float = key(1.0, "Largest gradient norm of a step.", gt=0)

    def check(self) -> None:
        if len(self.betas) != 2:
            raise ConfigError(f"betas: two numbers are needed, got {self.betas}")
        if self.warmup_steps and self.warmup_ratio:
            raise ConfigError("warmup_ratio: give either warmup_steps or warmup_ratio")


@dataclass
class TrainConfig:
    """How a role trains."""

    engine: str = key(
        "deepspeed",
        "torch is plain data parallel, the reference the tests compare with.",
        choices=("deepspeed", "torch"),
    )
    zero_stage: int = key(1, "What DeepSpeed shards over the ranks.", ge=0, le=3)
    offload: str = key(
        "none",
        "What DeepSpeed keeps in the host's memory: optimizer (master weights, optimiser state and "
        "the step itself), parameters (these too; ZeRO-3 only).",
        choices=("none", "optimizer", "parameters"),
    )
    gradient_checkpointing: bool = key(
        False, "Keep one activation per layer and compute the others again in the backward pass."
    )
    micro_batch_tokens: int = key(
        8192, "Padded tokens per forward and backward pass; rows are binned under it.", ge=1
    )
    freeze: list[str] = key(
        [],
        "What to freeze: vision, projector, or any dotted-name components of the parameters.",
    )
    lora_rank: int = key(
        0, "0: full fine-tuning. Above: PEFT adapters of this rank; a head trains in full.", ge=0
    )
    lora_alpha: float = key(16.0, "Adapters are scaled by lora_alpha / lora_rank.", gt=0)
    lora_targets: list[str] = key(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        "Names of the language model's modules that get an adapter.",
    )

    def check(self) -> None:
        if self.lora_rank and not self.lora_targets:
            raise ConfigError("lora_targets: name at least one module, or set lora_rank to 0")
        if self.lora_rank and self.freeze:
            raise ConfigError("freeze: adapters freeze everything else already; remove it")
        if self.offload != "none" and (self.engine != "deepspeed" or not self.zero_stage):
            raise ConfigError("offload: needs the engine deepspeed at zero_stage 1, 2 or 3")
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ConfigError("offload: parameters needs zero_stage 3; give optimizer")


FROZEN = ("whole", "sharded", "offload")


@dataclass
class LagrangeConfig:
    """The multiplier."""

    rule: str = key(
        "log_sgd",
        "log_sgd (Safe RLHF), projected (Safe RLHF-V, eq. 8), pid (Stooke et al. 2020), or fixed "
        "at init.",
        choices=("log_sgd", "projected", "pid", "fixed"),
    )
    init: float = key(1.0, "Initial value; pid: of the integral too.", ge=0)
    lr: float = key(0.1, "log_sgd and projected only: learning rate; 0: constant.", ge=0)
    kp: float = key(0.1, "pid only: gain of the smoothed violation.", ge=0)
    ki: float = key(0.1, "pid only: gain of the violations' sum, kept within 0..cap.", ge=0)
    kd: float = key(0.0, "pid only: gain of a rise of the smoothed mean.", ge=0)
    ema: float = key(0.5, "pid only: share of the past in both smoothed values.", ge=0, lt=1)
    kd_delay: int = key(10, "pid only: iterations over which a rise is measured.", ge=1)
    floor: float = key(0.001, "Least value; log_sgd needs one above 0.", ge=0)
    cap: float = key(20.0, "Largest value.", ge=0)
    window: int = key(
        128,
        "The mean over as many of the latest iterations as hold this many episodes drives "
        "the multiplier; an iteration counts whole, at least the latest one.",
        ge=1,
    )
    constraint: str = key(
        "mean_cost",
        "What the multiplier holds down: the mean cost, to threshold, or the mean probability of "
        "an unsafe answer, calibrated on labelled validation answers, to target_unsafe_rate. The "
        "policy learns from the cost either way.",
        choices=("mean_cost", "unsafe_probability"),
    )
    threshold: str = key(
        "auto",
        "Of mean_cost, in the cost model's units; auto: the mean cost at `target_unsafe_rate`, by "
        "labelled validation answers.",
    )
    target_unsafe_rate: float = key(
        0.05, "auto only: the budget, a share of unsafe answers among all.", gt=0, lt=1
    )
    delay: int = key(0, "Iterations before the first multiplier step.", ge=0)

    def check(self) -> None:
        if not self.floor <= self.init <= self.cap:
            raise ConfigError(
                f"cap: need floor <= init <= cap, got {self.floor}, {self.init}, {self.cap}"
            )
        if self.rule == "log_sgd" and not self.floor:
            raise ConfigError("floor: log_sgd needs a floor above 0: from 0 it cannot grow again")
        if self.rule == "pid" and not (self.kp or self.ki):
            raise ConfigError("ki: pid with neither kp nor ki does not see the violation")
        if self.threshold != "auto":
            if self.constraint == "unsafe_probability":
                raise ConfigError(
                    "threshold: unsafe_probability is held to target_unsafe_rate; leave it at auto"
                )
            try:
                usable = math.isfinite(float(self.threshold))
            except ValueError:
                usable = False
            if not usable:
                raise ConfigError(f"threshold: {self.threshold!r} is neither a number nor auto")


@dataclass
class GapConfig:
    """Bounds of the gap between engine and trainer log-probabilities of the same tokens."""

    warn: float = key(1e-4, "Largest expected gap in float32, nats; above it a warning.", gt=0)
    warn_bfloat16: float = key(0.1, "The same in bfloat16.", gt=0)
    stop_factor: float = key(10.0, "The run stops at this multiple of the expected gap.", ge=1)


@dataclass
class RunConfig:
    """A whole recipe."""

    name: str = key(MISSING, "Letters, digits, dots and dashes; names the run directory.")
    seed: int = key(0, "Seed of data, initialisation and sampling.", ge=0, le=MAX_SEED)
    dtype: str = key("float32", "Dtype of all models.", choices=DTYPES)
    runs_dir: str = key("runs", "Folder of run directories and reusable artefacts.")
    data: DataConfig = key(DataConfig(), "Where prompts and preference pairs come from.")
    cluster: ClusterConfig = key(ClusterConfig(), "Which Ray to use.")
    groups: dict[str, GroupConfig] = key(MISSING, "Name -> processes and their roles.")
    engine: RolloutEngineConfig = key(RolloutEngineConfig(), "Rollout engines.")
    timeouts: TimeoutConfig = key(TimeoutConfig(), "Deadlines.")
    failure: FailureConfig = key(FailureConfig(), "When a process dies.")
    tracker: TrackerConfig = key(TrackerConfig(), "Experiment tracker.")
    stages: dict[str, Any] = key(MISSING, "Name -> stage; run in the order written.")

    def check(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ConfigError(f"name: {self.name!r} must be letters, digits, dots and dashes")
        if self.name in (".", "..", "artifacts", "judgements"):
            raise ConfigError(f"name: {self.name!r} is a folder that runs_dir has already")
        if not self.groups:
            raise ConfigError("groups: name at least one group of processes")
        if not self.stages:
            raise ConfigError("stages: name at least one stage")

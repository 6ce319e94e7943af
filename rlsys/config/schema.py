"""The keys of a recipe except those of its stages, and of models and their training; those of
engines and of the multiplier are in ``engine`` and ``lagrange`` beside this file.

Plain dataclasses for OmegaConf. The ``check`` of a class raises errors about combinations of its
keys; ``rlsys.config.check`` calls it, and checks across classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from rlsys.config.engine import RolloutEngineConfig
from rlsys.config.failure import FailureConfig
from rlsys.config.keys import key
from rlsys.errors import ConfigError

DTYPES = ("float32", "bfloat16")
MAX_SEED = 2**32 - 1  # NumPy's
TINY = "tiny"  # as a start model: one that is made from scratch
ENGINES = DEEPSPEED, TORCH = ("deepspeed", "torch")
TOKEN_BUDGET = 8192  # padded tokens per forward pass, where no key says otherwise
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


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
        "Layout of the records: llava, vlguard, spa_vl, beavertails_v or questions; empty: by "
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
        DEEPSPEED,
        "torch is plain data parallel, the reference the tests compare with.",
        choices=ENGINES,
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
        TOKEN_BUDGET,
        "Padded tokens per forward and backward pass; rows are binned under it.",
        ge=1,
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

    @property
    def shares_base(self) -> bool:
        """Whether the frozen weights can be those of other roles in the process: ZeRO-3 would cut
        them up.
        """
        return bool(self.lora_rank) and self.zero_stage < 3

    def check(self) -> None:
        if self.lora_rank and not self.lora_targets:
            raise ConfigError("lora_targets: name at least one module, or set lora_rank to 0")
        if self.lora_rank and self.freeze:
            raise ConfigError("freeze: adapters freeze everything else already; remove it")
        if self.offload != "none" and (self.engine != "deepspeed" or not self.zero_stage):
            raise ConfigError("offload: needs the engine deepspeed at zero_stage 1, 2 or 3")
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ConfigError("offload: parameters needs zero_stage 3; give optimizer")


WHOLE = "whole"
FROZEN = (WHOLE, "sharded", "offload")


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
        _check_name("name", self.name)
        if self.name in ("artifacts", "judgements"):
            raise ConfigError(f"name: {self.name!r} is a folder that runs_dir has already")
        if not self.groups:
            raise ConfigError("groups: name at least one group of processes")
        if not self.stages:
            raise ConfigError("stages: name at least one stage")
        for section in ("groups", "stages"):
            for name in getattr(self, section):
                _check_name(section, name)


def _check_name(where: str, name: str) -> None:
    """Names become parts of paths and of dotted keys. Raises: ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: the name {name!r} must be letters, digits, '-', '_' and '.', and start with "
            "a letter, a digit or '_'"
        )

"""Builds the roles of one process. They share records, encoded prompts and the process group."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsys.config.schema import EngineConfig, OptimConfig, TrainConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import Prompt, Rows
from rlsys.data.slice import DataSlice
from rlsys.engines.common import Seat
from rlsys.engines.guard import GuardTrainer, GuardWorker
from rlsys.engines.judge import JudgeWorker
from rlsys.engines.policy import PolicyWorker, ReferenceWorker
from rlsys.engines.rollout import RolloutWorker
from rlsys.engines.scorer import CriticWorker, ScorerTrainer, ScorerWorker
from rlsys.engines.stepped import SteppedEngine
from rlsys.engines.train import Rank
from rlsys.errors import ModelError
from rlsys.guard.labels import OUTPUTS
from rlsys.judging.prompts import PromptSet
from rlsys.models.heads import PolicyModule, build_policy_module, build_scorer_module
from rlsys.models.load import load_processor, vision_token_ids
from rlsys.weights import WeightReader


@dataclass(frozen=True)
class RoleSpec:
    """All that one role needs: the narrow slice of the recipe."""

    kind: str
    model: str
    data: DataSlice
    seed: int = 0
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig | None = None
    total_steps: int = 1
    engine: EngineConfig = field(default_factory=EngineConfig)
    prompts: PromptSet | None = None
    "Judge: what it is asked with."
    max_new_tokens: int = 256
    "Judge: the longest reply."


class Workbench:
    """One per process. ``cpu``: no accelerator here."""

    def __init__(self, rank: Rank, reader: WeightReader, *, cpu: bool) -> None:
        self.rank, self.reader, self.cpu = rank, reader, cpu
        self.device = "cpu" if cpu else "cuda"
        self._records: dict[DataSlice, Rows[Prompt]] = {}
        self._encoders: dict[tuple[str, DataSlice], PromptEncoder] = {}
        self._kept: tuple[tuple[str, str], RolloutWorker] | None = None
        self._judge: tuple[tuple[str, str], SteppedEngine] | None = None

    def build(self, spec: RoleSpec) -> Any:
        """The worker of ``spec.kind``. Raises: ModelError, DataError."""
        encoder = self.encoder(spec.model, spec.data)
        seat = Seat(self.rank, encoder, spec.train.micro_batch_tokens)
        dtype = spec.train.dtype
        if spec.kind == "rollout":
            return self._engine(spec, encoder)
        if spec.kind == "judge":
            assert spec.prompts is not None
            limit = spec.max_new_tokens
            return JudgeWorker(self._judging(spec), encoder, spec.prompts, max_new_tokens=limit)
        if spec.kind == "reference":
            return ReferenceWorker(self._policy(spec, encoder).to(self.device), seat)
        if spec.kind in ("reward", "cost"):
            module = build_scorer_module(spec.model, dtype, new_head=False, seed=spec.seed)
            return ScorerWorker(module.to(self.device), seat)
        if spec.kind == "guard":
            module = build_scorer_module(
                spec.model, dtype, new_head=False, seed=spec.seed, outputs=OUTPUTS
            )
            return GuardWorker(module.to(self.device), seat)
        if spec.optim is None:
            raise ModelError(f"role {spec.kind!r} trains and needs optimiser settings")
        trained = (seat, spec.train, spec.optim, spec.total_steps)
        if spec.kind == "policy":
            return PolicyWorker(self._policy(spec, encoder).to(self.device), *trained)
        if spec.kind in ("reward_critic", "cost_critic"):
            module = build_scorer_module(spec.model, dtype, new_head=False, seed=spec.seed)
            return CriticWorker(module.to(self.device), *trained)
        if spec.kind == "scorer_trainer":
            module = build_scorer_module(spec.model, dtype, new_head=True, seed=spec.seed)
            return ScorerTrainer(module.to(self.device), *trained)
        if spec.kind == "guard_trainer":
            module = build_scorer_module(
                spec.model, dtype, new_head=True, seed=spec.seed, outputs=OUTPUTS
            )
            return GuardTrainer(module.to(self.device), *trained)
        raise ModelError(f"no worker of kind {spec.kind!r}")

    def encoder(self, model: str, data: DataSlice) -> PromptEncoder:
        """Shared by all roles whose tokenizer and processor files are the same."""
        if data not in self._records:
            self._records[data] = data.load()
        key = (processor_hash(model), data)
        if key not in self._encoders:
            self._encoders[key] = PromptEncoder(
                load_processor(model), self._records[data], data.max_prompt_tokens
            )
        return self._encoders[key]

    def _engine(self, spec: RoleSpec, encoder: PromptEncoder) -> RolloutWorker:
        """Starting one dominates: an engine of the same architecture is kept, its weights stale."""
        key = (architecture_hash(spec.model), repr(spec.engine))
        if self._kept is None or self._kept[0] != key:
            worker = RolloutWorker(spec.model, spec.engine, encoder, self.reader, cpu=self.cpu)
            self._kept = (key, worker)
        self._kept[1].reset(encoder)
        return self._kept[1]

    def _judging(self, spec: RoleSpec) -> SteppedEngine:
        """A judge's weights never move: the engine of the same model is kept."""
        key = (spec.model, repr(spec.engine))
        if self._judge is None or self._judge[0] != key:
            if self._judge is not None:
                self._judge[1].close()
            self._judge = (key, SteppedEngine(spec.model, spec.engine, cpu=self.cpu))
        self._judge[1].drop_caches()  # images go by their rows' ids, and these may be others
        return self._judge[1]

    def _policy(self, spec: RoleSpec, encoder: PromptEncoder) -> PolicyModule:
        module = build_policy_module(spec.model, spec.train.dtype, ())
        _, forbidden = vision_token_ids(module.vlm.config, encoder.tokenizer)
        module.forbidden = tuple(forbidden)
        return module


def architecture_hash(model: str) -> str:
    """Identity of everything in a checkpoint but its weights."""
    return _hash_files(model, ("config.json", "generation_config.json")) + processor_hash(model)


def processor_hash(model: str) -> str:
    """Identity of a checkpoint's tokenizer and image processing."""
    names = ("tokenizer.json", "processor_config.json", "preprocessor_config.json")
    return _hash_files(model, names)


def _hash_files(model: str, names: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for file in (Path(model) / name for name in names):
        if file.exists():
            total.update(file.read_bytes())
    return total.hexdigest()


def check_same_processor(models: dict[str, str]) -> None:
    """Roles that read each other's token ids must share them.

    Args: models: role -> folder. Raises: ModelError naming the two that differ.
    """
    (first, folder), *others = models.items()
    for role, other in others:
        if processor_hash(other) != processor_hash(folder):
            raise ModelError(
                f"{role} ({other}) and {first} ({folder}) have different tokenizers or image "
                "processors; their token ids do not mean the same"
            )

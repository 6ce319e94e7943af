"""Resources that the workers of a process share: rows, encoders, vLLM engines, transports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from rlsys.data.encoded import EncodedCache
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import Prompt, Rows
from rlsys.engines.fingerprints import Bytes
from rlsys.engines.registry import placed
from rlsys.engines.transports.base import Transport, WeightReader, WeightWriter
from rlsys.engines.weights import WeightUpdate
from rlsys.errors import ModelError
from rlsys.models.features import FeatureCache
from rlsys.models.heads import TrunkModule
from rlsys.models.load import load_processor, processor_behaviour
from rlsys.models.packing import shared_width
from rlsys.models.shared import SharedModels
from rlsys.runtime.process_group import Rank


class RowSource(Protocol):
    """Rows that a role reads. Equal sources hold the same rows."""

    @property
    def max_prompt_tokens(self) -> int: ...

    def load(self) -> Rows[Prompt]: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class WorkerContext:
    """Rank, device and data of a worker.

    token_budget: padded tokens per forward pass; writer: trainers' side of a transport, by name;
    shared_width: of the model (``rlsys.models.packing``), 0 where rows share no prompt; features:
    of images under frozen vision towers.
    """

    rank: Rank
    encoder: PromptEncoder
    token_budget: int
    device: str
    writer: Callable[[str], WeightWriter]
    shared_width: int = 0
    features: FeatureCache | None = None

    def frozen(self, module: TrunkModule, where: str = "whole") -> nn.Module:
        """A module that does not train, on this device; collective unless it is ``whole``. Args:
        where: its weights are, as the key ``frozen`` says.
        """
        module.cache = self.features
        return placed(module.to(self.device).requires_grad_(False), where)


class Engine(Protocol):
    """An engine that is slow to start; it is cached after its role is dropped."""

    def close(self) -> None: ...


class WorkerFactory:
    """One per process. cpu: no accelerator here; timeout: of one collective, and of a bucket of
    weights on its way, seconds.
    """

    def __init__(
        self,
        rank: Rank,
        transports: Mapping[str, Transport],
        token: str,
        *,
        cpu: bool,
        timeout: float = 60.0,
    ) -> None:
        self.rank, self.transports, self.token, self.cpu = rank, transports, token, cpu
        self.timeout = timeout
        self.device = "cpu" if cpu else "cuda"
        self._rows: dict[RowSource, Rows[Prompt]] = {}
        self._encoders: dict[tuple[str, RowSource], PromptEncoder] = {}
        self._encoded, self._features = EncodedCache(), FeatureCache()
        self.models = SharedModels(self.device)
        self._engines: dict[str, tuple[Hashable, Any]] = {}
        self._writers: dict[str, WeightWriter] = {}

    def context(self, model: str, data: RowSource, token_budget: int) -> WorkerContext:
        """Raises: ModelError, DataError."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        width, encoder = shared_width(config, self.device), self.encoder(model, data)
        return WorkerContext(
            self.rank, encoder, token_budget, self.device, self.writer, width, self._features
        )

    def encoder(self, model: str, data: RowSource) -> PromptEncoder:
        """Shared by all roles whose tokenizers and processors do the same."""
        if data not in self._rows:
            self._rows[data] = data.load()
        kind = processor_hash(model)
        key = (kind, data)
        if key not in self._encoders:
            self._encoders[key] = PromptEncoder(
                load_processor(model), self._rows[data], data.max_prompt_tokens, self._encoded, kind
            )
        return self._encoders[key]

    def engine(self, role: str, key: Hashable, start: Callable[[], Engine]) -> Any:
        """The cached engine of a role, else a new one. A cached engine with another ``key`` is
        closed first.
        """
        if role in self._engines and self._engines[role][0] != key:
            self.evict(role)
        if role not in self._engines:
            self._engines[role] = (key, start())
        return self._engines[role][1]

    def evict(self, role: str) -> None:
        """Close the cached engine of a role, which frees its memory."""
        if role in self._engines:
            self._engines.pop(role)[1].close()

    def writer(self, transport: str) -> WeightWriter:
        """Cached for the life of this process: its buffers are reused for every version."""
        if transport not in self._writers:
            chosen = self.transports[transport]
            self._writers[transport] = chosen.writer(self.token, self.timeout, self.rank.address)
        return self._writers[transport]

    def reader(self) -> WeightReader:
        """Reads updates of every transport."""
        readers = {name: each.reader(self.timeout) for name, each in self.transports.items()}
        return _AnyReader(readers)

    def close(self) -> None:
        """Free the engines."""
        for role in list(self._engines):
            self.evict(role)


@dataclass(frozen=True)
class _AnyReader:
    readers: Mapping[str, WeightReader]

    def read(self, update: WeightUpdate, number: int) -> Bytes | Tensor:
        return self.readers[update.transport].read(update, number)


def architecture_hash(model: str) -> str:
    """Hash of a checkpoint's configuration, tokenizer and image processing."""
    from transformers import AutoConfig

    ends = Path(model) / "generation_config.json"
    kept = [
        AutoConfig.from_pretrained(model, trust_remote_code=False).to_dict(),
        json.loads(ends.read_text()) if ends.exists() else {},
    ]
    return _digest(_settings(kept)) + processor_hash(model)


def processor_hash(model: str) -> str:
    """Hash of what a checkpoint's tokenizer and image processor do, however they were saved."""
    files = sorted(Path(model).glob("*.j*"))  # .json and .jinja
    contents = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
    return _processor_hash(model, _digest(contents))


@cache
def _processor_hash(model: str, contents: str) -> str:
    return _digest(processor_behaviour(load_processor(model)))


def _settings(content: Any) -> Any:
    """A configuration without what another version of transformers writes differently."""
    if isinstance(content, dict):
        return {str(k): _settings(v) for k, v in content.items() if k not in _RECORDS}
    return [_settings(each) for each in content] if isinstance(content, list) else content


# Of no effect on what is computed.
_RECORDS = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def check_same_processor(models: Mapping[str, str]) -> None:
    """Check that roles that exchange token ids have the same tokenizer and image processor.

    Args: models: role -> folder. Raises: ModelError naming the two that differ.
    """
    (first, folder), *others = models.items()
    for role, other in others:
        if processor_hash(other) != processor_hash(folder):
            raise ModelError(
                f"{role} ({other}) and {first} ({folder}) have different tokenizers or image "
                "processors; their token ids are not interchangeable"
            )

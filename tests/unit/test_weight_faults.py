"""Twelve faults of a weight sync, each an error of ours that names the tensor or the phase."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlsys.config.engine import GapConfig
from rlsys.drivers.gap import engine_gap
from rlsys.drivers.sampling import sync_weights
from rlsys.engines import publishing
from rlsys.engines.loading import load_bucket, load_counted
from rlsys.engines.transports.base import Fill
from rlsys.engines.vllm import SteppedEngine
from rlsys.engines.weights import Loaded, WeightUpdate
from rlsys.errors import LogprobGapError, RlsysError, RoleError, RoleTimeout, SyncError
from rlsys.models.adapters import TrainedTensor
from rlsys.models.families.text import TextProcessor
from rlsys.roles.rollout import RolloutHandle, RolloutWorker
from rlsys.runtime.pending import Part, Pending, ProcessDied
from tests.fakes import FakeGroup, FakePolicy, FakeRollout, Log, make_rollouts

ROWS, WIDTH = 8, 4
LIMIT = 2 * 4 * ROWS * WIDTH  # bytes of a bucket: two tensors
Tensors = Sequence[tuple[str, Tensor]]


class Attention(nn.Module):
    """Loads checkpoint tensors as a vLLM model does: q and k are parts of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Parameter(torch.zeros(2 * ROWS, WIDTH), requires_grad=False)
        self.out = nn.Parameter(torch.zeros(ROWS, WIDTH), requires_grad=False)
        self.head = nn.Parameter(torch.zeros(ROWS, WIDTH), requires_grad=False)
        self.skipped: tuple[str, ...] = ()
        self.twice: tuple[str, ...] = ()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        places = {"q": self.qk[:ROWS], "k": self.qk[ROWS:], "out": self.out, "head": self.head}
        for name, tensor in weights:
            if name not in places:
                raise ValueError(f"There is no module or parameter named {name!r}")
            for _ in range((name not in self.skipped) + (name in self.twice)):
                places[name].data.copy_(tensor)

    def holds(self, tensors: Tensors) -> bool:
        named = dict(tensors)
        parts = {"q": self.qk[:ROWS], "k": self.qk[ROWS:], "out": self.out, "head": self.head}
        return all(torch.equal(parts[name], tensor) for name, tensor in named.items())


class Core:
    """The part of vLLM's engine that a sync calls."""

    def __init__(self) -> None:
        self.model, self.prefixes_in_use, self.encoded_images = Attention(), False, 0

    def apply_model(self, function: Callable[[nn.Module], Any]) -> list[Any]:
        return [function(self.model)]

    def collective_rpc(self, function: Callable[[Any], Any]) -> list[Any]:
        cache = dict.fromkeys(range(self.encoded_images))
        return [function(SimpleNamespace(model_runner=SimpleNamespace(encoder_cache=cache)))]

    def has_unfinished_requests(self) -> bool:
        return False

    def reset_prefix_cache(self) -> bool:
        return not self.prefixes_in_use

    def reset_mm_cache(self) -> None: ...

    def reset_encoder_cache(self) -> None: ...


class Llm:
    """vLLM's engine and the part of its weight-transfer API that a sync calls."""

    def __init__(self, core: Core) -> None:
        self.llm_engine, self.core = core, core
        self.model_config = SimpleNamespace(hf_config=HF_CONFIG)
        self.updating = False

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        self.reader = request["init_info"]["reader"]

    def start_weight_update(self) -> None:
        assert not self.updating, "vLLM refuses"
        self.updating = True

    def update_weights(self, request: dict[str, Any]) -> None:
        assert self.updating, "vLLM refuses"
        try:
            load_bucket(self.core.model, self.reader, **request["update_info"])
        except SyncError:
            self.updating = False
            raise

    def finish_weight_update(self, weight_version: str) -> None:
        self.updating = False


@dataclass
class Memory:
    """A transport within the test, whose buckets can be spoilt."""

    buckets: list[np.ndarray] = field(default_factory=list)

    def publish(self, sizes: Sequence[int], fill: Fill) -> None:
        self.buckets = [np.zeros(size, dtype=np.uint8) for size in sizes]
        for number, bucket in enumerate(self.buckets):
            fill(number, bucket)

    def read(self, update: WeightUpdate, number: int) -> np.ndarray:
        return self.buckets[number]


class Sync:
    """A trainer, its transport and one engine that has loaded version 1."""

    def __init__(self) -> None:
        self.memory, self.core = Memory(), Core()
        engine = object.__new__(SteppedEngine)
        engine.llm = Llm(self.core)
        engine.lock = threading.Lock()
        encoder: Any = SimpleNamespace(processor=PROCESSOR, prompts=lambda *_: [], records={})
        self.worker = RolloutWorker(engine, "", encoder, self.memory)
        self.worker.load(self.publish(1))

    def publish(self, version: int, tensors: Tensors | None = None) -> WeightUpdate:
        self.sent = weights(version) if tensors is None else tensors
        trained = [
            TrainedTensor(name, (nn.Parameter(tensor, requires_grad=False),))
            for name, tensor in self.sent
        ]
        update = publishing.publish(
            version, trained, lambda _: nullcontext(), "memory", self.memory, LIMIT
        )
        assert update is not None
        return update


HF_CONFIG = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=10))
PROCESSOR = TextProcessor(
    SimpleNamespace(get_vocab=dict, added_tokens_decoder={}, all_special_tokens=[], eos_token_id=1)
)


def weights(version: int) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(version)
    draw = (torch.randn(ROWS, WIDTH, generator=generator) for _ in range(4))
    return list(zip(("q", "k", "out", "head"), draw, strict=True))


def skipped_tensor(sync: Sync) -> None:
    sync.core.model.skipped = ("k",)
    sync.worker.load(sync.publish(2))


def stale_adapter(sync: Sync) -> None:
    """The bytes are those of the adapter before the step."""
    old = [bucket.copy() for bucket in sync.memory.buckets]
    update = sync.publish(2)
    sync.memory.buckets = old
    sync.worker.load(update)


def wrong_dtype(sync: Sync) -> None:
    changed = [(n, t.bfloat16() if n == "out" else t) for n, t in weights(2)]
    sync.worker.load(sync.publish(2, changed))


def renamed_key(sync: Sync) -> None:
    renamed = [(n.replace("out", "output"), t) for n, t in weights(2)]
    sync.worker.load(sync.publish(2, renamed))


def renamed_from_the_start(sync: Sync) -> None:
    sync.worker._last = None
    renamed_key(sync)


def two_tensors_swapped(sync: Sync) -> None:
    update, bucket = sync.publish(2), sync.memory.buckets[0]
    half = update.entries[1].start
    bucket[:] = np.concatenate([bucket[half:], bucket[:half]])
    sync.worker.load(update)


def dropped_bucket(sync: Sync) -> None:
    update = sync.publish(2)
    sync.memory.buckets[1] = sync.memory.buckets[1][:0]
    sync.worker.load(update)


def dead_receiver(sync: Sync) -> None:
    lost: Future[Loaded] = Future()
    lost.set_exception(ProcessDied("process 7 died"))
    sync_weights(FakePolicy(Log()), Engines(lost), 2, 0.1)


def hanging_receiver(sync: Sync) -> None:
    sync_weights(FakePolicy(Log()), Engines(Future()), 2, 0.1)


def half_applied_update(sync: Sync) -> None:
    """The first bucket is in the engine when the second one turns out to be damaged."""
    update = sync.publish(2)
    sync.memory.buckets[1][-1] ^= 1
    with pytest.raises(SyncError, match="tensor head arrived"):
        sync.worker.load(update)
    assert sync.core.model.holds(sync.sent[:2])
    sync.worker.draw([], 2, 4, 1.0)


def adapter_applied_twice(sync: Sync) -> None:
    sync.core.model.twice = ("q",)
    sync.worker.load(sync.publish(2))


def old_prefix_cache(sync: Sync) -> None:
    sync.core.prefixes_in_use = True
    sync.worker.load(sync.publish(2))


def old_encoder_cache(sync: Sync) -> None:
    sync.core.encoded_images = 3
    sync.worker.load(sync.publish(2))


def stale_tied_head(sync: Sync) -> None:
    """All tensors arrived, but the engine computes logits with a copy of the old embeddings."""
    hidden, old, new = torch.ones(WIDTH), dict(weights(1))["head"], dict(weights(2))["head"]
    engine, trainer = (torch.log_softmax(head @ hidden, -1) for head in (old, new))
    drawn = make_rollouts([(0, 3)], version=2)
    drawn = replace(drawn, engine_logprobs=engine[:WIDTH][None].contiguous())
    engine_gap(drawn, trainer[:WIDTH][None], GapConfig())


def other_version(sync: Sync) -> None:
    group = FakeGroup(answer=lambda rank, call: Loaded(2 - rank, "node-b"))
    handle = RolloutHandle(group, max_new_tokens=4, temperature=1.0, chunk_prompts=1)
    handle.load(WeightUpdate(2, (), "memory", None)).result(1.0)


def older_version(sync: Sync) -> None:
    sync.worker.load(sync.publish(0))


class Engines(FakeRollout):
    """Two engines, of which the second one answers with ``second``."""

    def __init__(self, second: Future[Loaded]) -> None:
        super().__init__(Log())
        self.second = second

    def load(self, update: WeightUpdate) -> Pending[Loaded]:
        first: Future[Loaded] = Future()
        first.set_result(Loaded(update.version))
        parts = [Part(first, "rollout", 0, "node-a"), Part(self.second, "rollout", 1, "node-b")]
        return Pending(parts, lambda values: values[0])


FAULTS: list[tuple[Callable[[Sync], None], type[RlsysError], str]] = [
    (skipped_tensor, SyncError, r"load: tensor k: .* took 0 of 32"),
    (stale_adapter, SyncError, r"version 2: read: tensor q arrived"),
    (wrong_dtype, SyncError, r"version 2 after 1: announce: tensor out is bfloat16"),
    (renamed_key, SyncError, r"announce: tensor out is missing \(2 differences"),
    (renamed_from_the_start, SyncError, r"load: tensor output: ValueError"),
    (two_tensors_swapped, SyncError, r"read: tensor q arrived"),
    (dropped_bucket, SyncError, r"read: bucket 1 of 0 bytes ends before tensor out"),
    (dead_receiver, RoleError, r"'rollout' failed \(rank 1, host node-b\): ProcessDied"),
    (hanging_receiver, RoleTimeout, r"version 2: load: .*'rollout' \(rank 1, host node-b\)"),
    (half_applied_update, SyncError, r"weights 2, the engine holds no verified weights"),
    (adapter_applied_twice, SyncError, r"load: tensor q: .* took 64 of 32"),
    (old_prefix_cache, SyncError, r"caches: prefixes"),
    (old_encoder_cache, SyncError, r"caches: 3 encoded images"),
    (stale_tied_head, LogprobGapError, r"weights version 2"),
    (other_version, SyncError, r"acknowledge: engine 1 on host node-b holds version 1"),
    (older_version, SyncError, r"version 0 after 1: announce: it is older"),
]


@pytest.mark.parametrize(
    ("fault", "error", "text"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS]
)
def test_a_fault_is_seen_and_named(
    fault: Callable[[Sync], None],
    error: type[RlsysError],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlsys.runtime.pending.CAUSE_GRACE_SECONDS", 0.0)
    sync = Sync()
    with pytest.raises(error, match=text):
        fault(sync)
    assert sync.worker.version in (None, 1), "weights that are not proved serve nobody"


def test_clean_syncs_raise_nothing() -> None:
    sync = Sync()
    for version in range(2, 30):
        assert sync.worker.load(sync.publish(version)) == Loaded(version, socket.gethostname())
        assert sync.core.model.holds(sync.sent)
        assert sync.worker.version == version


def test_a_sync_says_what_it_took() -> None:
    sync, log = Sync(), Log()
    update = replace(sync.publish(2), seconds={"fingerprint": 0.5, "pack": 9.0})

    class Trainer(FakePolicy):
        def publish(self, version: int) -> Pending[WeightUpdate]:
            return Pending.of(update)

    class Engine(FakeRollout):
        def load(self, update: WeightUpdate) -> Pending[Loaded]:
            return Pending.of(Loaded(update.version, seconds={"fingerprint": 0.25, "load": 9.0}))

    found = sync_weights(Trainer(log), Engine(log), 2, 1.0)
    assert found["sync/bytes"] == 4 * 4 * ROWS * WIDTH
    assert found["sync/fingerprint_seconds"] == 0.75
    rate = found["sync/bytes"] / found["sync/seconds"] / 1e9
    assert found["sync/gb_per_s"] == pytest.approx(rate)


def test_the_last_update_can_be_loaded_again_by_an_engine_that_joins() -> None:
    sync = Sync()
    update = sync.publish(5)
    sync.worker.load(update)
    late = Sync()
    late.worker.reader, late.worker._last = sync.memory, None
    late.worker.load(update)
    sync.worker.load(update)
    assert late.core.model.holds(sync.sent)


def test_a_layer_of_which_only_a_part_is_trained_keeps_the_rest() -> None:
    sync = Sync()
    sync.worker._last = None
    sync.worker.load(sync.publish(2, weights(2)[:1]))  # q alone
    assert sync.core.model.holds([weights(2)[0], *weights(1)[1:]])


def test_a_tensor_that_the_loader_converts_first_is_counted() -> None:
    """A loader may move a tensor to the model's device or dtype before it copies."""

    class Converting(Attention):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
            super().load_weights((name, tensor.to(torch.float64)) for name, tensor in weights)

    found = load_counted(Converting(), weights(1))
    assert found == dict.fromkeys(("q", "k", "out", "head"), ROWS * WIDTH)

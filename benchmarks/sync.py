"""What a weight sync of 135 million parameters costs, phase by phase, from trainer to engine.

python benchmarks/sync.py [REPETITIONS]    writes benchmarks/sync.md

A random Llama of SmolLM2-135M's shape in bfloat16 is published through shared memory and loaded
into a vLLM engine, whole and with adapters; and the demo's model with adapters in float32; each
through a broadcast group too. Trainer and engine take turns in one process with one thread. Then
the bytes of the first one to two processes on two Ray nodes of this machine, without an engine, by
each transport between nodes. Medians.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

from rlsys.engines.environment import CPU_ENVIRONMENT, ENVIRONMENT, OFFLINE

os.environ.update(
    ENVIRONMENT | CPU_ENVIRONMENT | OFFLINE | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
)

import ray
import torch
from ray.cluster_utils import Cluster
from torch import nn
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from actors import object_store
from actors.object_store import CLUSTER_TRANSPORTS
from rlsys.config.engine import EngineConfig
from rlsys.config.schema import TinyConfig, TrainConfig
from rlsys.engines.fingerprints import as_bytes, fingerprint
from rlsys.engines.publishing import publish
from rlsys.engines.transports import broadcast, shared_memory
from rlsys.engines.transports.registry import TRANSPORTS
from rlsys.engines.vllm import SteppedEngine
from rlsys.engines.weights import Phases, WeightUpdate, unpack
from rlsys.leftovers import shared_folder
from rlsys.models.adapters import add_lora, trained_tensors
from rlsys.models.tiny import build_tiny_vlm

ROOT = Path(__file__).parents[1]
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
    tie_word_embeddings=True, rope_theta=100_000.0,
)  # fmt: skip
TEXT_ONLY = {"skip_tokenizer_init": True, "limit_mm_per_prompt": {}}
LORA = TrainConfig(lora_rank=8)
WAIT = 60.0


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    token = f"benchmark-{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="rlsys-sync-"))
    try:
        rows = large(folder / "large", token, repetitions)
        rows += demo(folder / "demo", token, repetitions)
        rows += remote(repetitions)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(shared_folder(token), ignore_errors=True)
    (ROOT / "benchmarks" / "sync.md").write_text("\n".join(page(rows, repetitions)) + "\n")


def large(folder: Path, token: str, repetitions: int) -> list[str]:
    """135M parameters, full and with adapters."""
    model = LlamaForCausalLM(SMOLLM2_135M).bfloat16()
    model.save_pretrained(folder)
    engine = SteppedEngine(
        str(folder), EngineConfig(extra=TEXT_ONLY), "bfloat16", cpu=True, reloads=True
    )
    tensors = [parameter.detach() for parameter in model.parameters()]
    nbytes = sum(tensor.nbytes for tensor in tensors)
    target = torch.zeros(max(t.nbytes for t in tensors), dtype=torch.uint8).numpy()

    def copy() -> None:
        for tensor in tensors:
            target[: tensor.nbytes] = as_bytes(tensor)

    rows = [
        row("135M bf16", "fingerprints alone", nbytes, repetitions,
            lambda: [fingerprint(tensor) for tensor in tensors]),
        row("135M bf16", "copy alone", nbytes, repetitions, copy),
        *synced("135M bf16", model, engine, token, repetitions),
    ]  # fmt: skip
    add_lora(model, LORA, seed=0)
    rows += synced("135M bf16, LoRA", model, engine, token, repetitions)
    engine.close()
    return rows


def demo(folder: Path, token: str, repetitions: int) -> list[str]:
    """A model of the demo's size, full and with adapters."""
    folder.mkdir()
    build_tiny_vlm(folder, ["how do i use this ? hold it and pull"], TinyConfig(), seed=0)
    engine = SteppedEngine(str(folder), EngineConfig(), "float32", cpu=True, reloads=True)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    rows = synced("demo fp32", model, engine, token, repetitions)
    add_lora(model, LORA, seed=0)
    rows += synced("demo fp32, LoRA", model, engine, token, repetitions)
    engine.close()
    return rows


def synced(
    name: str, model: nn.Module, engine: SteppedEngine, token: str, repetitions: int
) -> list[str]:
    """Whole syncs, after one that allocates memory."""
    rows = measured(name, model, engine, token, repetitions, shared_memory.NAME)
    chosen = ("publish", "read and check", "load", "whole sync")
    grouped = measured(f"{name}, broadcast", model, engine, token, repetitions, broadcast.NAME)
    return rows + [row for row in grouped if row.split(" | ")[2] in chosen]


def measured(
    name: str, model: nn.Module, engine: SteppedEngine, token: str, repetitions: int, transport: str
) -> list[str]:
    """Whole syncs through one transport."""
    trained = trained_tensors(model)
    writer = TRANSPORTS[transport].writer(token, WAIT)
    reader = TRANSPORTS[transport].reader(WAIT)
    spent: list[dict[str, float]] = []
    nbytes = 0
    for version in range(repetitions + 1):
        started = time.perf_counter()
        update = publish(version, trained, lambda _: nullcontext(), transport, writer)
        assert update is not None
        phases = load(engine, reader, update)
        total = time.perf_counter() - started
        nbytes = update.nbytes
        spent.append({
            "publish": update.seconds["publish"],
            "of it gathering and merging": update.seconds["publish"]
            - update.seconds["pack"] - update.seconds["fingerprint"],
            "of it packing": update.seconds["pack"],
            "of it fingerprints": update.seconds["fingerprint"],
            "read and check": phases["read"] + phases["fingerprint"],
            "load": phases["load"],
            "transport and load": update.seconds["pack"] + phases["read"] + phases["load"],
            "whole sync": total,
        })  # fmt: skip
    return [line(name, phase, nbytes, [each[phase] for each in spent[1:]]) for phase in spent[0]]


class Receiver:
    """An engine's process, without the engine."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.readers = {name: each.reader(WAIT) for name, each in CLUSTER_TRANSPORTS.items()}

    def read(self, update: WeightUpdate) -> None:
        """Every bucket, verified."""
        for number, bucket in enumerate(update.buckets):
            buffer = self.readers[update.transport].read(update, number)
            unpack(update.version, bucket, buffer, Phases())


def remote(repetitions: int) -> list[str]:
    """Two nodes receive the weights of the large model, by each transport between nodes."""
    model = LlamaForCausalLM(SMOLLM2_135M).bfloat16()
    trained, rows = trained_tensors(model), []
    store = {"object_store_memory": 1 << 30, "num_cpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args=store)
    try:
        for name in ("a", "b"):
            cluster.add_node(**store, resources={name: 1})
        ray.init(address=cluster.address, log_to_driver=False)
        remotes = [ray.remote(resources={name: 1})(Receiver).remote() for name in ("a", "b")]
        for transport in (object_store.NAME, broadcast.NAME):
            writer, spent = CLUSTER_TRANSPORTS[transport].writer("", WAIT), []
            for version in range(repetitions + 1):
                started = time.perf_counter()
                update = publish(version, trained, lambda _: nullcontext(), transport, writer)
                assert update is not None
                published = time.perf_counter()
                ray.get([each.read.remote(update) for each in remotes], timeout=2 * WAIT)
                ended = time.perf_counter()
                spent.append((published - started, ended - published, ended - started))
            phases = ("publish", "read and check, both", "publish to read")
            rows += [
                line(f"135M bf16, {transport}, 2 nodes", phase, update.nbytes, list(times))
                for phase, times in zip(phases, zip(*spent[1:], strict=True), strict=True)
            ]
    finally:
        ray.shutdown()
        cluster.shutdown()
    return rows


def load(engine: SteppedEngine, reader: Any, update: WeightUpdate) -> Phases:
    """The engine's half, as its worker does it."""
    with engine.lock:
        phases = engine.load_update(update, reader)
        engine.drop_caches()
    return phases


def row(name: str, phase: str, nbytes: int, repetitions: int, work: Callable[[], Any]) -> str:
    times = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return line(name, phase, nbytes, times[1:])


def line(name: str, phase: str, nbytes: int, times: list[float]) -> str:
    middle = statistics.median(times)
    spread = f"{1e3 * min(times):.1f} to {1e3 * max(times):.1f}"
    rate = f"{nbytes / middle / 1e9:.2f}" if middle else "-"
    text = f"| {name} | {nbytes / 1e6:.1f} | {phase} | {1e3 * middle:.1f} | {spread} | {rate} |"
    print(text, flush=True)
    return text


def page(rows: list[str], repetitions: int) -> list[str]:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    busy = os.getloadavg()[0]
    return [
        "# Weight syncs",
        "",
        f"From trainer to engine on one node, through shared memory where nothing else is said, "
        f"{date.today():%Y-%m-%d}, "
        f"commit {commit.strip()}, {os.cpu_count()} cores ({platform.machine()}), one thread, "
        f"no GPU; {repetitions} repetitions, load average {busy:.1f} at the end; "
        f"`python benchmarks/sync.py {repetitions}`.",
        "",
        "| model | MB | phase | median, ms | range, ms | GB/s |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        *NOTES,
    ]


NOTES = [
    "Transport and load are the copy into shared memory, its reading, and the writing of vLLM's",
    "own parameters; the whole also gathers, and computes and checks every fingerprint.",
    "",
    "A LoRA sync sends the adapted layers merged. Adapters alone would be smaller, but the merge",
    "is most of what it costs and would move to the engine, which would have to keep the base",
    "weights of these layers a second time: it holds them merged, and taking the old adapter out",
    "again would round at every version.",
]


if __name__ == "__main__":
    main()

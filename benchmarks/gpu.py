"""Scoring, update and weight publication of a 3B-shaped vision-language model on one device.

python benchmarks/gpu.py [--tiny] [--prompts 8] [--samples 8] [--visual 256] [--answer 128] ...

In process, with plain torch alone: no Ray, vLLM or DeepSpeed. Weights are random, in the shape of
Qwen2.5-VL-3B (--tiny: of the demo's model); one policy is scored and trained, with prompts computed
once for all of their samples and in the plain form. Written to benchmarks/gpu.md, unless --tiny.

MFU counts the operations of the plain form: 2 per parameter and token forward, 6 in an update
(PaLM, arXiv 2204.02311, appendix B), so that what is not computed counts as done.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rlsys.batch import PolicyBatch, Rollouts
from rlsys.config.schema import TORCH, OptimConfig, TinyConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import Prompt, Rows
from rlsys.engines.fingerprints import Bytes
from rlsys.models import heads
from rlsys.models.heads import PolicyModule
from rlsys.models.packing import shared_width
from rlsys.models.tiny import SPECIAL_TOKENS, tiny_configuration, tiny_processor
from rlsys.models.vision import speed_up_vision
from rlsys.plan.compute import DEVICES, Device, forward_flops, measured_cpu, training_flops
from rlsys.plan.model import describe
from rlsys.roles.factory import WorkerContext
from rlsys.roles.policy import PolicyWorker
from rlsys.roles.trained import Training
from rlsys.runtime.process_group import Rank

PAGE = Path(__file__).with_suffix(".md")
SEED_TEXT = "how do i use the thing in this picture ? hold it and pull , then ask for help . "


@dataclass(frozen=True)
class Size:
    """prompts, samples of each; visual tokens of a picture; tokens of an answer; tokens of a
    micro-batch; repeats: of which the median counts.
    """

    prompts: int
    samples: int
    visual: int
    answer: int
    tokens: int
    repeats: int


def three_billion(tokens: dict[str, int]) -> Qwen2_5_VLConfig:
    """Shape of Qwen2.5-VL-3B (arXiv 2502.13923, table 1). Args: tokens: ids of the special ones."""
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008,
            "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
            "max_position_embeddings": 32768, "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
            },
        },
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        image_token_id=tokens["<|image_pad|>"], video_token_id=tokens["<|video_pad|>"],
        vision_start_token_id=tokens["<|vision_start|>"],
        vision_end_token_id=tokens["<|vision_end|>"], tie_word_embeddings=True,
    )  # fmt: skip


def picture(visual: int, seed: int) -> bytes:
    """Noise of as many visual tokens of 28x28 pixels, in four rows."""
    shape = (4 * 28, visual // 4 * 28, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Memory:
    """Keeps one bucket at a time, as a transport to an engine on the same device would."""

    def publish(self, sizes: list[int], fill: Callable[[int, Bytes | None], None]) -> None:
        buffer = np.empty(max(sizes), np.uint8)
        for number, size in enumerate(sizes):
            fill(number, buffer[:size])


class Bench:
    """One policy with its rollouts."""

    def __init__(self, size: Size, *, tiny: bool, device: str) -> None:
        self.size, self.device = size, device
        sizes = TinyConfig(max_image_tokens=max(size.visual, 4))
        processor = tiny_processor([SEED_TEXT] * 4, sizes)
        ids = {t: processor.tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS}
        vocab = len(processor.tokenizer)
        self.config = tiny_configuration(ids, vocab, sizes) if tiny else three_billion(ids)
        dtype = torch.float32 if tiny else torch.bfloat16
        with torch.device(device):
            vlm = Qwen2_5_VLForConditionalGeneration._from_config(self.config, dtype=dtype)
        speed_up_vision(vlm, packs_images=True)
        train = TrainConfig(engine=TORCH, micro_batch_tokens=size.tokens)
        self.model = describe(self.config, scorer=False, train=train)
        rows = [
            Prompt(
                id=str(n),
                question=SEED_TEXT,
                image=picture(size.visual, n) if size.visual else None,
            )
            for n in range(size.prompts)
        ]
        self.encoder = PromptEncoder(processor, Rows(rows), 8192)
        self.rollouts = self._rollouts()
        context = WorkerContext(
            Rank(), self.encoder, size.tokens, device, lambda _: Memory(),
            shared_width(self.config, device),
        )  # fmt: skip
        training = Training(train, OptimConfig(lr=1e-6), 100, 0)
        module = PolicyModule(vlm, (ids["<|image_pad|>"],))
        self.worker = PolicyWorker(module, context, training)

    def _rollouts(self) -> Rollouts:
        size = self.size
        index = torch.arange(size.prompts).repeat_interleave(size.samples)
        shape = (len(index), size.answer)
        return Rollouts(
            prompt_index=index,
            sample_index=torch.arange(size.samples).repeat(size.prompts),
            prompt_ids=[each.expanded for each in self.encoder.prompts(index.tolist())],
            response_ids=torch.randint(10, 200, shape, generator=torch.Generator().manual_seed(0)),
            lengths=torch.full((len(index),), size.answer),
            engine_logprobs=torch.zeros(shape),
            finished=torch.ones(len(index), dtype=torch.bool),
            version=0,
        )

    def score(self) -> Tensor:
        return self.worker.logprobs(self.rollouts)[1]

    def update(self) -> None:
        advantages = torch.ones(self.rollouts.response_ids.shape)
        batch = PolicyBatch(self.rollouts, advantages - 12, advantages, shuffle_seed=0)
        self.worker.update(batch, PpoConfig(minibatch=len(self.rollouts), epochs=1))

    def publish(self) -> None:
        self.worker.publish(1, "memory")

    def flops(self) -> tuple[float, float]:
        """Of scoring and of an update, in the plain form."""
        rows, prompt = len(self.rollouts), len(self.rollouts.prompt_ids[0])
        length = prompt + self.size.answer
        patches = rows * self.size.visual * self.model.shape.patches
        answers = rows * self.size.answer
        forward = forward_flops(self.model, rows * length, length, patches, answers)
        return forward, training_flops(forward, adapters=False, checkpointing=False)

    @property
    def tokens(self) -> int:
        """Of all rows in the plain form."""
        return len(self.rollouts) * (len(self.rollouts.prompt_ids[0]) + self.size.answer)


@contextmanager
def plain_form(worker: PolicyWorker) -> Iterator[None]:
    """Every row computes its prompt anew."""
    context = replace(worker.context, shared_width=0)
    with (
        patch.object(heads, "shared_width", lambda *_: 0),
        patch.object(worker, "context", context),
    ):
        yield


def timed(run: Callable[[], Any], repeats: int, device: str) -> tuple[float, float]:
    """Median seconds, and the most memory held meanwhile in GB (0 on a CPU)."""
    cuda = device == "cuda"
    run()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return float(np.median(seconds)), peak


def results(bench: Bench, peak_flops: float) -> Iterator[tuple[str, ...]]:
    """Rows of the table."""
    score, update = bench.flops()
    for form in ("plain", "shared prompts"):
        for what, run, flops in (("score", bench.score, score), ("update", bench.update, update)):
            with plain_form(bench.worker) if form == "plain" else nullcontext():
                seconds, memory = timed(run, bench.size.repeats, bench.device)
            yield (
                what, form, f"{seconds:.3f}", f"{bench.tokens / seconds:,.0f}",
                f"{100 * flops / seconds / peak_flops:.0f} %", f"{memory:.1f}",
            )  # fmt: skip
    seconds, memory = timed(bench.publish, bench.size.repeats, bench.device)
    sent = sum(p.nbytes for p in bench.worker.module.parameters() if p.requires_grad)
    yield "publish", f"{sent / 1e9:.2f} GB", f"{seconds:.3f}", f"{sent / seconds / 1e9:.2f} GB/s", \
        "", f"{memory:.1f}"  # fmt: skip


def main(arguments: list[str] | None = None) -> list[tuple[str, ...]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in (("prompts", 8), ("samples", 8), ("visual", 256), ("answer", 128),
                        ("tokens", 16384), ("repeats", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args(arguments)
    sizes = {name: getattr(given, name) for name in Size.__dataclass_fields__}
    bench = Bench(Size(**sizes), tiny=given.tiny, device=given.device)
    device = this_device(given.device)
    table = Table("what", "form", "seconds", "tokens/s", "MFU", "peak, GB", box=MARKDOWN)
    rows = []
    for row in results(bench, device.flops):
        table.add_row(*row)
        rows.append(row)
    Console(width=100).print(table)
    if not given.tiny:
        write_page(table, given, device.name)
    return rows


def this_device(kind: str) -> Device:
    """Raises: SystemExit for a GPU whose peak is not known."""
    if kind == "cpu":
        return measured_cpu("float32")
    named = torch.cuda.get_device_name().lower()
    known = [device for name, device in DEVICES.items() if name in named]
    if not known:
        raise SystemExit(f"{named}: its peak is none of those in rlsys/plan/compute.py")
    return known[0]


def write_page(table: Table, given: argparse.Namespace, device: str) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    with PAGE.open("w") as stream:
        page = Console(file=stream, width=100)
        page.print("# One 3B-shaped model on one device\n")
        page.print(f"{date.today()}, commit {commit}, {device}; {vars(given)}\n")
        page.print(table)


if __name__ == "__main__":
    main()

"""What ``rlsys plan`` says a process needs, beside what update steps of real roles take.

python benchmarks/plan.py [FIRST]    writes benchmarks/plan.md, after every case

FIRST continues with this case; the lines of those before it are kept.

Every case is a process of its own with one thread: a random model of SmolLM2-135M's shape, or the
demo's, as policy, critic or reference on rollouts of equal lengths. Measured is the largest
resident size during two calls (VmHWM, set back before them) over that after all imports, before
there is a model. glibc gives freed tensors back at once (MALLOC_MMAP_THRESHOLD_).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from rlsys.engines.environment import CPU_ENVIRONMENT, OFFLINE

os.environ.update(CPU_ENVIRONMENT | OFFLINE | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"})

import torch
from transformers import LlamaConfig

from rlsys.batch import PolicyBatch, Rollouts, ValueBatch
from rlsys.config.schema import OptimConfig, TinyConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import Prompt, Rows
from rlsys.engines.weights import WeightUpdate
from rlsys.models.families.text import TextProcessor
from rlsys.models.heads import PolicyModule, ScorerModule
from rlsys.models.outline import configuration
from rlsys.models.tiny import CHAT_TEMPLATE, train_tokenizer
from rlsys.plan.load import Lengths, role_memory
from rlsys.plan.model import describe
from rlsys.plan.roles import Batch, RolePlan
from rlsys.roles.critic import CriticWorker
from rlsys.roles.factory import WorkerContext
from rlsys.roles.policy import PolicyWorker
from rlsys.roles.reference import ReferenceWorker
from rlsys.roles.trained import Training
from rlsys.runtime.process_group import Rank, join_group, open_store

ROOT = Path(__file__).parents[1]
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
    tie_word_embeddings=True,
)  # fmt: skip
PLAIN, ZERO = {"engine": "torch"}, {"engine": "deepspeed"}


@dataclass(frozen=True)
class Case:
    """rows, answer: of an optimiser step, and tokens of an answer; all in one micro-batch."""

    name: str
    role: str
    dtype: str
    train: dict[str, Any] = field(default_factory=dict)
    large: bool = True
    rows: int = 2
    answer: int = 64


CASES = (
    Case("135M policy, torch", "policy", "float32", PLAIN),
    Case("135M policy, torch, checkpointing", "policy", "float32",
         PLAIN | {"gradient_checkpointing": True}, rows=6),
    Case("135M policy, ZeRO-1", "policy", "float32", ZERO | {"zero_stage": 1}),
    Case("135M policy, ZeRO-2", "policy", "bfloat16", ZERO | {"zero_stage": 2}),
    Case("135M policy, ZeRO-3", "policy", "bfloat16", ZERO | {"zero_stage": 3}),
    Case("135M policy, LoRA", "policy", "bfloat16", ZERO | {"zero_stage": 1, "lora_rank": 8},
         rows=4),
    Case("135M critic, ZeRO-2", "critic", "bfloat16", ZERO | {"zero_stage": 2}),
    Case("135M critic, torch", "critic", "float32", PLAIN, rows=4),
    Case("135M reference", "reference", "bfloat16", rows=6),
    Case("demo's policy, torch", "policy", "float32", PLAIN, large=False, rows=64),
    Case("demo's critic, ZeRO-1", "critic", "float32", ZERO | {"zero_stage": 1}, large=False,
         rows=64),
)  # fmt: skip


def main() -> None:
    first, page = int(sys.argv[1]) if len(sys.argv) > 1 else 0, ROOT / "benchmarks" / "plan.md"
    kept = page.read_text().splitlines() if first else []
    lines = [
        line for line in kept if line.startswith(tuple(f"| {c.name} |" for c in CASES[:first]))
    ]
    for number, case in enumerate(CASES[first:], first):
        with tempfile.NamedTemporaryFile() as result:
            command = [sys.executable, __file__, str(number), result.name]
            limits = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
            subprocess.run(command, check=True, env=os.environ | limits, cwd=ROOT)
            found = json.loads(Path(result.name).read_text())
        ratio = found["planned"] / found["measured"]
        line = (
            f"| {case.name} | {case.dtype} | {found['tokens']} | {found['planned'] / 1e6:.0f} | "
            f"{found['measured'] / 1e6:.0f} | {100 * (ratio - 1):+.0f} % |"
        )
        print(line, flush=True)
        lines.append(line)
        page.write_text("\n".join([*_page(), *lines]) + "\n")


def _page() -> list[str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    return [
        "# Planned and measured memory\n",
        f"Of one process over what it has after its imports, {date.today()}, on {commit}, "
        f"{os.cpu_count()} cores ({platform.machine()}), one thread, no GPU; "
        "`python benchmarks/plan.py`. One rank, one micro-batch; measured is the peak of the "
        "resident size during two updates (of the reference: two forward passes).\n",
        "| role | dtype | tokens | planned, MB | measured, MB | difference |",
        "|---|---|---|---|---|---|",
    ]


def measure(case: Case, result: Path) -> None:
    """Run one case in this process."""
    torch.set_num_threads(1)
    config = SMOLLM2_135M if case.large else configuration(TinyConfig())
    encoder, rollouts = _rollouts(case, config)
    prompt = encoder.lengths([0])[0]
    tokens = case.rows * (prompt + case.answer)
    train = TrainConfig(**case.train, micro_batch_tokens=tokens) if case.train else None
    if train is not None and train.engine == "deepspeed":
        import deepspeed  # noqa: F401

        store = open_store("127.0.0.1")
        join_group(Rank(0, 1, "127.0.0.1", store.port), store, 60.0)
    import peft  # noqa: F401

    before = _status("VmRSS")
    call = _worker(case, config, encoder, rollouts, train, tokens)
    Path("/proc/self/clear_refs").write_text("5")
    call()
    call()
    measured = _status("VmHWM") - before
    scorer = case.role == "critic"
    model = describe(config, scorer=scorer, train=train)
    batch = Batch(case.rows, case.rows, 1, 1, not scorer, case.answer)
    role = RolePlan(case.role, model, batch, train, token_budget=tokens)
    needs = role_memory(role, Lengths(prompt, case.answer, 0), 1, case.dtype)
    planned = needs.held.resident + needs.transient
    result.write_text(json.dumps({"planned": planned, "measured": measured, "tokens": tokens}))


def _rollouts(case: Case, config: Any) -> tuple[PromptEncoder, Rollouts]:
    text = "how do i use this ? hold it and pull "
    tokenizer = train_tokenizer([text * 4], 300)
    tokenizer.chat_template = CHAT_TEMPLATE
    rows = Rows([Prompt(id=str(n), question=f"{n:03} {text * 4}", image=None)
                 for n in range(case.rows)])  # fmt: skip
    encoder = PromptEncoder(TextProcessor(tokenizer), rows, 1024)
    index = torch.arange(case.rows)
    shape = (case.rows, case.answer)
    rollouts = Rollouts(
        prompt_index=index,
        sample_index=torch.zeros_like(index),
        prompt_ids=[each.expanded for each in encoder.prompts(index.tolist())],
        response_ids=torch.randint(10, 200, shape),
        lengths=torch.full((case.rows,), case.answer),
        engine_logprobs=torch.zeros(shape),
        finished=torch.ones(case.rows, dtype=torch.bool),
        version=0,
    )
    return encoder, rollouts


def _worker(
    case: Case,
    config: Any,
    encoder: PromptEncoder,
    rollouts: Rollouts,
    train: TrainConfig | None,
    tokens: int,
) -> Any:
    """A call of a new worker."""
    import transformers

    def writer(transport: str) -> Any:
        raise AssertionError(f"no {WeightUpdate.__name__} is sent through {transport}")

    context = WorkerContext(Rank(), encoder, tokens, "cpu", writer, 0)
    auto = "AutoModelForCausalLM" if case.large else "AutoModelForImageTextToText"
    chosen = getattr(transformers, "AutoModel" if case.role == "critic" else auto)
    model = chosen.from_config(config, dtype=getattr(torch, case.dtype))
    values = torch.randn(case.rows, case.answer)
    ppo = PpoConfig(minibatch=case.rows)
    if train is None:
        reference = ReferenceWorker(PolicyModule(model, (1, 2)), context)
        return lambda: reference.logprobs(rollouts)
    training = Training(train, OptimConfig(lr=1e-5), 10, 0)
    if case.role == "critic":
        critic = CriticWorker(ScorerModule(model), context, training)
        return lambda: critic.update(ValueBatch(rollouts, values, values, shuffle_seed=0), ppo)
    policy = PolicyWorker(PolicyModule(model, (1, 2)), context, training)
    return lambda: policy.update(PolicyBatch(rollouts, values - 9, values, shuffle_seed=0), ppo)


def _status(name: str) -> int:
    """Bytes, by /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(CASES[int(sys.argv[1])], Path(sys.argv[2]))
    else:
        main()

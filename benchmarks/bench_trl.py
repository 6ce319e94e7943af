"""One TRL trainer on the benchmark's model and prompts, in TRL's own environment; prints its steps.

python bench_trl.py grpo|online-dpo|dpo MODEL ROWS STEPS

ROWS: JSON lines with image, question, chosen and rejected. Called by ``bench.py``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

SAMPLES, NEW_TOKENS, PAIRS = 64, 16, 32
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


class Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def prompts(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def user(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def answer(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def length_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Of any kind: its cost is none."""
    return [float(len(str(each)) % 7) for each in completions]


def trainer_of(kind: str, model: str, rows: list[dict[str, Any]], steps: int) -> Any:
    processor = AutoProcessor.from_pretrained(model, padding_side="left")
    forbidden = [processor.tokenizer.convert_tokens_to_ids(each) for each in PLACEHOLDERS]
    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    pictures = [row["image"] for row in rows]
    asked = [user(row["question"]) for row in rows]
    common: dict[str, Any] = {
        "output_dir": "/tmp/rlsys-bench-trl", "max_steps": steps, "use_cpu": True, "bf16": False,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "seed": 0,
        "learning_rate": 1e-6, "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        table = {
            "prompt": asked, "image": pictures, "chosen": [answer(row["chosen"]) for row in rows],
            "rejected": [answer(row["rejected"]) for row in rows],
        }  # fmt: skip
        data = Dataset.from_dict(table).cast_column("image", Image())
        settings = DPOConfig(**common, per_device_train_batch_size=PAIRS, beta=0.1)
        return DPOTrainer(
            model=policy, args=settings, train_dataset=data, processing_class=processor
        )
    data = Dataset.from_dict({"prompt": asked, "image": pictures}).cast_column("image", Image())
    if kind == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        grpo = GRPOConfig(
            **common, per_device_train_batch_size=SAMPLES, num_generations=4, beta=0.04,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"suppress_tokens": forbidden, "min_new_tokens": NEW_TOKENS},
        )  # fmt: skip
        return GRPOTrainer(
            model=policy, args=grpo, train_dataset=data, reward_funcs=[length_reward],
            processing_class=processor,
        )  # fmt: skip
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    online = OnlineDPOConfig(
        **common, per_device_train_batch_size=SAMPLES // 2, max_new_tokens=NEW_TOKENS, beta=0.1,
        generation_kwargs={"suppress_tokens": forbidden, "min_new_tokens": NEW_TOKENS},
    )  # fmt: skip
    return OnlineDPOTrainer(
        model=policy, args=online, train_dataset=data, reward_funcs=length_reward,
        processing_class=processor,
    )  # fmt: skip


def main() -> None:
    kind, model, path, steps = sys.argv[1:]
    torch.set_num_threads(2)
    trainer = trainer_of(kind, model, prompts(path), int(steps))
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    seconds = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    samples = PAIRS if kind == "dpo" else SAMPLES
    print(json.dumps({"trainer": kind, "samples": samples, "seconds": seconds}))


if __name__ == "__main__":
    main()

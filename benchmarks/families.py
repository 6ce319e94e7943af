"""Every model family through every step, with vLLM engines, on tiny random checkpoints.

python benchmarks/families.py [model_type ...]    writes benchmarks/families.md

Each family has a process of its own. A cell is the largest difference between log-probabilities of
engine and trainer in nats, of the scores before and after a reload, or ok.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rlsys.batch import PolicyBatch, Rollouts, SampleRequest  # noqa: E402
from rlsys.config.engine import EngineConfig  # noqa: E402
from rlsys.config.schema import OptimConfig, TrainConfig  # noqa: E402
from rlsys.config.updates import PpoConfig  # noqa: E402
from rlsys.data.rows import Rows, demonstration  # noqa: E402
from rlsys.data.slice import InMemory  # noqa: E402
from rlsys.engines.environment import CPU_ENVIRONMENT, ENVIRONMENT, OFFLINE  # noqa: E402
from rlsys.models.load import checkpoint_family, load_policy  # noqa: E402
from rlsys.roles.policy import PolicyHandle, PolicySpec  # noqa: E402
from rlsys.roles.rollout import RolloutHandle, RolloutSpec  # noqa: E402
from rlsys.roles.scorer import (  # noqa: E402
    ScorerHandle,
    ScorerLoss,
    ScorerSpec,
    ScorerTrainerHandle,
    ScorerTrainerSpec,
)
from rlsys.roles.trained import Training  # noqa: E402
from rlsys.runtime.local import LocalGroup, local_process  # noqa: E402
from tests.checkpoints import MODEL_TYPES, build_checkpoint  # noqa: E402
from tests.checkpoints.rows import shapes  # noqa: E402

WAIT, FP32, TOKENS = 120.0, "float32", 8
LIMIT = 1e-4  # nats
PPO = PpoConfig(num_prompts=6, samples_per_prompt=2, max_new_tokens=TOKENS, epochs=1, minibatch=4)
STEPS = (
    "load", "sft", "reward", "cost", "ppo full", "ppo LoRA", "sync gap", "evaluate", "save",
    "reload",
)  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]))
        return
    table = {each: run(each) for each in sys.argv[1:] or MODEL_TYPES}
    lines = [f"| {' | '.join(('model type', *STEPS))} |", "|---" * (len(STEPS) + 1) + "|"]
    for name, found in table.items():
        lines.append(f"| {' | '.join((name, *(found.get(step, '-') for step in STEPS)))} |")
    text = (ROOT / "benchmarks" / "families.py").read_text().split('"""')[1].strip()
    (ROOT / "benchmarks" / "families.md").write_text(
        f"{text}\n\nMeasured {date.today()}, float32, on CPU.\n\n" + "\n".join(lines) + "\n"
    )


def run(model_type: str) -> dict[str, str]:
    """Step -> what was found, in a process of its own; the last one says why it stopped."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--one", model_type, folder],
            env=os.environ | CPU_ENVIRONMENT | ENVIRONMENT | OFFLINE,
            capture_output=True,
            text=True,
            timeout=600,
        )
        path = Path(folder) / "found.json"
        found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if done.returncode:
        missing = next(step for step in STEPS if step not in found)
        found[missing] = done.stderr.strip().splitlines()[-1][:200].replace("|", "/")
    print(model_type, found, flush=True)
    return found


def one(model_type: str, folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, str] = {}

    def note(step: str, value: float | None = None) -> None:
        found[step] = "ok" if value is None else f"{value:.1e}"
        if value is not None and not value < LIMIT:
            raise AssertionError(f"{step}: {value}")
        (folder / "found.json").write_text(json.dumps(found))

    model = build_checkpoint(folder / "model", model_type)
    with local_process(seed=0, collective_timeout=WAIT) as process:
        Steps(LocalGroup(process), model, folder).run(note)


class Steps:
    """One family, in this process."""

    def __init__(self, group: LocalGroup, model: str, folder: Path) -> None:
        self.group, self.model, self.folder = group, model, folder
        rows = shapes(checkpoint_family(model).max_images)
        self.rows = list(range(len(rows)))
        self.data = InMemory(rows)
        self.shown = InMemory(Rows([demonstration(row, "safer") for row in rows.rows]))
        self.most = rows.most_images
        self.version = 0

    def run(self, note: Callable[..., None]) -> None:
        policy = self.policy(self.model)
        note("load")
        policy.sft_step(self.rows, "token_mean").result(WAIT)
        note("sft")
        note("reward", self.scorer("reward"))
        note("cost", self.scorer("cost"))
        rollout = self.engine(self.model)
        gap = self.synced(rollout, policy)
        self.update(rollout, policy)
        note("ppo full", max(gap, self.synced(rollout, policy)))
        saved = self.folder / "saved"
        policy.save(saved).result(WAIT)
        kept = self.draw(rollout)
        expected = policy.logprobs(kept).result(WAIT)
        rollout = self.engine(str(saved))  # the kept engine gets the base weights
        adapted = self.policy(str(saved), lora_rank=4)
        gap = self.synced(rollout, adapted)
        self.update(rollout, adapted)
        gap = max(gap, self.synced(rollout, adapted))
        note("ppo LoRA", gap)
        note("sync gap", gap)
        adapted.save(self.folder / "adapted").result(WAIT)
        (greedy,) = rollout.generate(self.requests(1), greedy=True)
        assert len(greedy.result(WAIT)) == len(self.rows)
        note("evaluate")
        load_policy(str(saved), FP32)
        note("save")
        again = self.policy(str(saved)).logprobs(kept).result(WAIT)
        rollout.load_checkpoint(str(saved), 99).result(WAIT)
        drawn = self.draw(rollout)
        trainer = self.policy(str(saved)).logprobs(drawn).result(WAIT)
        note("reload", max(distance(again, expected, kept), gap_of(trainer, drawn)))

    def policy(self, model: str, **train: Any) -> PolicyHandle:
        policy = PolicyHandle(self.group, lambda: "shm", PPO)
        policy.create(PolicySpec(model, self.shown, FP32, training(**train))).result(WAIT)
        return policy

    def engine(self, model: str) -> RolloutHandle:
        rollout = RolloutHandle(
            self.group, max_new_tokens=TOKENS, temperature=1.0, chunk_prompts=len(self.rows)
        )
        engine = EngineConfig(max_model_len=512, max_num_seqs=16)
        rollout.create(RolloutSpec(model, self.data, engine, FP32)).result(WAIT)
        return rollout

    def scorer(self, signal: str) -> float:
        trainer = ScorerTrainerHandle(self.group, ScorerLoss(signal, regularization=0.001))
        trainer.create(ScorerTrainerSpec(self.model, self.data, FP32, training())).result(WAIT)
        trainer.step(self.rows).result(WAIT)
        scorer = ScorerHandle(self.group, signal)
        before = scorer.score_pairs(self.rows).result(WAIT)
        trainer.save(self.folder / signal).result(WAIT)
        scorer.create(ScorerSpec(str(self.folder / signal), self.data, FP32, 8192)).result(WAIT)
        after = scorer.score_pairs(self.rows).result(WAIT)
        scorer.drop().result(WAIT)
        return float((after - before).abs().max())

    def requests(self, samples: int) -> list[SampleRequest]:
        return [SampleRequest(row, n, 7 * row + n) for row in self.rows for n in range(samples)]

    def draw(self, rollout: RolloutHandle) -> Rollouts:
        (chunk,) = rollout.generate(self.requests(2))
        return chunk.result(WAIT)

    def synced(self, rollout: RolloutHandle, policy: PolicyHandle) -> float:
        """The gap after a sync."""
        self.version += 1
        rollout.load(policy.publish(self.version).result(WAIT)).result(WAIT)
        drawn = self.draw(rollout)
        return gap_of(policy.logprobs(drawn).result(WAIT), drawn)

    def update(self, rollout: RolloutHandle, policy: PolicyHandle) -> None:
        drawn = self.draw(rollout)
        advantages = torch.randn(drawn.response_ids.shape, generator=torch.Generator())
        policy.update(PolicyBatch(drawn, drawn.engine_logprobs, advantages, 0)).result(WAIT)


def training(**train: Any) -> Training:
    settings = TrainConfig(engine="torch", micro_batch_tokens=400, **train)
    return Training(settings, OptimConfig(lr=1e-2), total_steps=10, seed=0)


def distance(left: torch.Tensor, right: torch.Tensor, rollouts: Rollouts) -> float:
    return float((left - right)[rollouts.mask].abs().max())


def gap_of(trainer: torch.Tensor, rollouts: Rollouts) -> float:
    return distance(trainer, rollouts.engine_logprobs, rollouts)


if __name__ == "__main__":
    main()

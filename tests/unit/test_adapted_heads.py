"""Scorers and critics with adapters: what trains, what is saved, and what is resumed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlsys.batch import ValueBatch
from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import PreferencePair, Rows
from rlsys.guard.labels import CATEGORIES, OUTPUTS
from rlsys.models.adapters import lora_scaling
from rlsys.models.heads import build_scorer_module
from rlsys.models.load import checkpoint_dtype, checkpoint_tensors, load_head
from rlsys.roles.critic import CriticWorker
from rlsys.roles.guard import GuardTrainer, GuardWorker
from rlsys.roles.scorer import ScorerLoss, ScorerTrainer, ScorerWorker, TrainedHead
from rlsys.roles.trained import Training
from tests.fakes import make_rollouts
from tests.helpers import worker_context

ROWS = [0, 1, 2, 3]
REWARD = ScorerLoss("reward", regularization=0.001)
LORA = TrainConfig(engine="torch", lora_rank=4, lora_alpha=12.0)
TRAINING = Training(LORA, OptimConfig(lr=1e-2), total_steps=10, seed=3)


def trainer(tiny: str, encoder: PromptEncoder, training: Training = TRAINING) -> ScorerTrainer:
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1)
    return ScorerTrainer(module, worker_context(encoder, 100_000), training)


def state_of(worker: TrainedHead) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in worker.engine.full_params()}


def moved(before: dict[str, torch.Tensor], worker: TrainedHead) -> set[str]:
    after = state_of(worker)
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_adapters_and_the_head_train_and_nothing_else(tiny: str, encoder: PromptEncoder) -> None:
    worker = trainer(tiny, encoder)
    trained = {n for n, p in worker.module.named_parameters() if p.requires_grad}
    assert trained == {n for n in state_of(worker) if "lora_" in n} | {"head.weight"}
    assert len(trained) == 2 * 4 * 2 + 1  # A and B of four projections in two layers, and the head
    before = state_of(worker)
    for _ in range(2):  # B is zero at first, so A has no gradient in the first step
        worker.step(ROWS, REWARD)
    assert moved(before, worker) == trained


def test_a_critic_trains_its_adapters_and_its_head(tiny: str, encoder: PromptEncoder) -> None:
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1)
    worker = CriticWorker(module, worker_context(encoder, 100_000), TRAINING)
    prompts = [prompt.expanded for prompt in encoder.prompts(ROWS)]
    rollouts = replace(make_rollouts([(row, 0) for row in ROWS]), prompt_ids=prompts)
    before, (_, values) = state_of(worker), worker.values(rollouts)
    batch = ValueBatch(rollouts, values, torch.ones_like(values), shuffle_seed=0)
    for _ in range(2):
        worker.update(batch, PpoConfig(max_new_tokens=4))
    assert moved(before, worker) == {n for n in before if "lora_" in n or n == "head.weight"}


def test_a_saved_scorer_has_its_adapters_merged(
    tiny: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    worker = trainer(tiny, encoder)
    untrained = worker.score_pairs(ROWS)[1]
    for _ in range(3):
        worker.step(ROWS, REWARD)
    worker.save_model(tmp_path)
    loaded = build_scorer_module(str(tmp_path), "float32", new_head=False, seed=0)
    assert lora_scaling(loaded.trunk) == {}
    assert set(dict(loaded.named_parameters())) == {
        name.replace(".base_layer", "") for name in state_of(worker) if "lora_" not in name
    }
    scores = ScorerWorker(loaded, worker_context(encoder, 100_000)).score_pairs(ROWS)[1]
    trained = worker.score_pairs(ROWS)[1]
    assert float((trained - untrained).abs().max()) > 1e-3
    torch.testing.assert_close(scores, trained, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_says_its_dtype(
    dtype: str, tiny: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    module = build_scorer_module(tiny, dtype, new_head=True, seed=1)
    worker = ScorerTrainer(module, worker_context(encoder, 100_000), TRAINING)
    worker.save_model(tmp_path)
    assert checkpoint_dtype(str(tmp_path)) == dtype
    saved = {str(tensor.dtype) for _, tensor in checkpoint_tensors(str(tmp_path))}
    assert saved == {f"torch.{dtype}"}


def test_a_saved_guard_has_its_adapters_merged(
    tiny: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    rows = [
        replace(row, category=CATEGORIES[1])
        for row in encoder.records.of_kind(ROWS, PreferencePair)
    ]
    labelled = PromptEncoder(encoder.processor, Rows(rows), max_prompt_tokens=128)
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1, outputs=OUTPUTS)
    worker = GuardTrainer(module, worker_context(labelled, 100_000), TRAINING)
    before = state_of(worker)
    for _ in range(2):
        worker.step(ROWS)
    assert moved(before, worker) == {n for n in before if "lora_" in n or n == "head.weight"}
    worker.save_model(tmp_path)
    head = load_head(str(tmp_path))
    assert head is not None
    assert torch.equal(head, worker.module.head.weight)
    loaded = build_scorer_module(str(tmp_path), "float32", new_head=False, seed=0, outputs=OUTPUTS)
    outputs = GuardWorker(loaded, worker.context).moderate_rows(ROWS)[1]
    unmerged = GuardWorker(worker.module, worker.context).moderate_rows(ROWS)[1]
    torch.testing.assert_close(outputs, unmerged, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("seed", [3, 4])
def test_adapters_follow_the_seed_of_the_stage_alone(
    seed: int, tiny: str, encoder: PromptEncoder
) -> None:
    """Not what the process drew before: a stage that is reused draws nothing."""
    first = state_of(trainer(tiny, encoder))
    torch.randn(7)
    again = state_of(trainer(tiny, encoder, replace(TRAINING, seed=seed)))
    same = all(torch.equal(first[name], again[name]) for name in first)
    assert same is (seed == TRAINING.seed)


def test_a_saved_state_continues_bit_for_bit(
    tiny: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    worker = trainer(tiny, encoder)
    worker.step(ROWS, REWARD)
    worker.save_state(tmp_path, "reward")
    following = [worker.step(ROWS, REWARD) for _ in range(2)]
    resumed = trainer(tiny, encoder, replace(TRAINING, seed=9))
    resumed.load_state(tmp_path, "reward")
    assert [resumed.step(ROWS, REWARD) for _ in range(2)] == following
    assert moved(state_of(worker), resumed) == set()

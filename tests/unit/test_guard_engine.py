"""The guard as a model: one step is one step however it is cut, and it learns its labels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlsys.batch import Rollouts
from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import Prompt, Rows
from rlsys.errors import ModelError
from rlsys.guard.labels import CATEGORIES, OUTPUTS
from rlsys.guard.quality import guard_quality
from rlsys.models.heads import build_scorer_module
from rlsys.roles.forward import merge_rows
from rlsys.roles.guard import GuardTrainer, GuardWorker
from rlsys.roles.scorer import ScorerWorker
from rlsys.roles.trained import Training
from rlsys.runtime.process_group import Rank
from tests.helpers import worker_context

ROWS = [0, 1, 2, 3]
ONE_BATCH, SMALL = 100_000, 60


@pytest.fixture(scope="module")
def labelled(encoder: PromptEncoder) -> PromptEncoder:
    rows = [
        replace(record, category=CATEGORIES[1 + number], severity=number)
        for number, record in enumerate(encoder.records.rows)
    ]
    return PromptEncoder(encoder.processor, Rows(rows), max_prompt_tokens=128)


def trainer(
    tiny: str, encoder: PromptEncoder, budget: int, rank: int = 0, world: int = 1
) -> GuardTrainer:
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1, outputs=OUTPUTS)
    optim = OptimConfig(lr=3e-3, warmup_steps=2)
    training = Training(TrainConfig(engine="torch"), optim, total_steps=10, seed=0)
    return GuardTrainer(module, worker_context(encoder, budget, Rank(rank, world)), training)


def gradients(worker: GuardTrainer) -> dict[str, Tensor]:
    worker.engine.step = lambda: {}  # type: ignore[method-assign]
    worker.step(ROWS)
    return {n: p.grad for n, p in worker.module.named_parameters() if p.grad is not None}


def test_micro_batches_and_ranks_are_one_step(tiny: str, labelled: PromptEncoder) -> None:
    whole = gradients(trainer(tiny, labelled, ONE_BATCH))
    cut = gradients(trainer(tiny, labelled, SMALL))
    ranks = [gradients(trainer(tiny, labelled, SMALL, r, 2)) for r in (0, 1)]
    largest = max(float(g.abs().max()) for g in whole.values())
    assert largest > 1e-3
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, atol=1e-5 * largest, rtol=1e-4)
        both = ranks[0][name] + ranks[1][name]
        torch.testing.assert_close(both, gradient, atol=1e-5 * largest, rtol=1e-4)


def test_it_learns_a_few_rows_by_heart(tiny: str, labelled: PromptEncoder, tmp_path: Path) -> None:
    worker = trainer(tiny, labelled, ONE_BATCH)
    for _ in range(60):
        stats = worker.step(ROWS)
    assert stats.shares["loss"] < 0.2
    assert stats.shares["accuracy"] == pytest.approx(1.0)
    worker.save_model(tmp_path)
    module = build_scorer_module(str(tmp_path), "float32", new_head=False, seed=0, outputs=OUTPUTS)
    guard = GuardWorker(module, worker_context(labelled, SMALL))
    outputs = merge_rows([guard.moderate_rows(ROWS)])
    assert outputs.shape == (12, OUTPUTS)
    quality = guard_quality(outputs, labelled.records)
    perfect = {name: value for name, value in quality.items() if name != "items"}
    wrong = {name for name, value in perfect.items() if value != float("positives" not in name)}
    assert wrong == set()
    assert quality["items"] == 12
    with pytest.raises(ModelError, match="a head of 26 outputs; train a reward or cost model"):
        build_scorer_module(str(tmp_path), "float32", new_head=False, seed=0)


def test_a_rollout_is_moderated_like_the_same_text(tiny: str, labelled: PromptEncoder) -> None:
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1, outputs=OUTPUTS)
    texts = [labelled.records[row].responses[0] for row in ROWS]
    ids = [labelled.response(text) for text in texts]
    width = max(map(len, ids)) + 3
    padded = torch.zeros(len(ids), width, dtype=torch.long)
    for row, answer in enumerate(ids):
        padded[row, : len(answer)] = answer
    rollouts = Rollouts(
        prompt_index=torch.tensor(ROWS),
        sample_index=torch.zeros(len(ROWS), dtype=torch.long),
        prompt_ids=[prompt.expanded for prompt in labelled.prompts(ROWS)],
        response_ids=padded,
        lengths=torch.tensor([len(answer) for answer in ids]),
        engine_logprobs=torch.zeros(len(ROWS), width),
        finished=torch.ones(len(ROWS), dtype=torch.bool),
        version=0,
    )
    parts = []
    for rank in (Rank(0, 2), Rank(1, 2)):
        guard = GuardWorker(module, worker_context(labelled, SMALL, rank))
        parts.append(guard.moderate(rollouts))
    whole = GuardWorker(module, worker_context(labelled, ONE_BATCH)).moderate_rows(ROWS)
    torch.testing.assert_close(merge_rows(parts), merge_rows([whole])[::3], atol=1e-5, rtol=1e-4)


def test_a_prompt_is_moderated_as_in_training(tiny: str, labelled: PromptEncoder) -> None:
    """As the third item of its row, also where the rows have no answers."""
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1, outputs=OUTPUTS)
    items = GuardWorker(module, worker_context(labelled, ONE_BATCH)).moderate_rows(ROWS)
    bare = [
        Prompt(id=record.id, question=record.question, image=record.image)
        for record in labelled.records.rows
    ]
    prompts = PromptEncoder(labelled.processor, Rows(bare), max_prompt_tokens=128)
    ranks = [
        GuardWorker(module, worker_context(prompts, SMALL, Rank(r, 2))).moderate_prompts(ROWS)
        for r in (0, 1)
    ]
    torch.testing.assert_close(merge_rows(ranks), merge_rows([items])[2::3], atol=1e-5, rtol=1e-4)


def test_a_scorer_reads_a_text_as_it_reads_a_response(tiny: str, labelled: PromptEncoder) -> None:
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1)
    scorer = ScorerWorker(module, worker_context(labelled, SMALL))
    texts = [labelled.records[row].responses[1] for row in ROWS]
    pairs = merge_rows([scorer.score_pairs(ROWS)])
    alone = merge_rows([scorer.score_texts(ROWS, texts)])
    torch.testing.assert_close(alone, pairs[:, 1], atol=1e-5, rtol=1e-4)

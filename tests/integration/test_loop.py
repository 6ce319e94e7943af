"""Real engines on one private Ray: what they compute, what they prove, how they fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsys.batch import PolicyBatch, Rollouts, SampleRequest, ValueBatch, sample_seed
from rlsys.config.schema import OptimConfig, RunConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.slice import DataSlice, RowKind
from rlsys.data.source import load_pairs
from rlsys.engines.transports.registry import TRANSPORTS
from rlsys.errors import RoleError
from rlsys.models.tiny import build_tiny_vlm
from rlsys.roles.critic import COST_CRITIC, CriticHandle, CriticSpec
from rlsys.roles.factory import WorkerFactory, architecture_hash
from rlsys.roles.forward import merge_rows
from rlsys.roles.policy import PolicyHandle, PolicySpec, PolicyWorker
from rlsys.roles.reference import ReferenceHandle, ReferenceSpec
from rlsys.roles.rollout import RolloutHandle, RolloutSpec
from rlsys.roles.scorer import (
    ScorerHandle,
    ScorerLoss,
    ScorerSpec,
    ScorerTrainerHandle,
    ScorerTrainerSpec,
)
from rlsys.roles.trained import Training
from rlsys.runtime.group import Runtime
from rlsys.runtime.process_group import Rank
from tests.integration.conftest import TINY

WAIT = 120.0
FP32 = "float32"
PPO = PpoConfig(num_prompts=6, samples_per_prompt=2, max_new_tokens=8, epochs=2, minibatch=4)
OPTIM = OptimConfig(lr=1e-2)


def requests(prompts: range, samples: int = 2, iteration: int = 0) -> list[SampleRequest]:
    return [
        SampleRequest(p, s, sample_seed(0, iteration, p, s))
        for p in prompts
        for s in range(samples)
    ]


def training(**train: Any) -> Training:
    settings = TrainConfig(**{"micro_batch_tokens": 160} | train)
    return Training(settings, OPTIM, total_steps=10, seed=0)


def policy_of(
    cluster: Runtime, model: str, data: DataSlice, transport: str, **train: Any
) -> PolicyHandle:
    policy = PolicyHandle(cluster.group("policy"), lambda: transport, PPO)
    policy.create(PolicySpec(model, data, FP32, training(**train))).result(WAIT)
    return policy


@pytest.fixture(scope="module")
def rollout(cluster: Runtime, model: str, data: DataSlice, run_config: RunConfig) -> RolloutHandle:
    engine = RolloutHandle(
        cluster.group("rollout"), max_new_tokens=8, temperature=1.0, chunk_prompts=3
    )
    engine.create(RolloutSpec(model, data, run_config.engine, FP32)).result(WAIT)
    return engine


def draw(rollout: RolloutHandle, wanted: list[SampleRequest], **how: bool) -> list[Rollouts]:
    return [pending.result(WAIT) for pending in rollout.generate(wanted, **how)]


def gap(trainer: torch.Tensor, rollouts: Rollouts) -> float:
    """Largest difference of trainer and engine on the same tokens, nats."""
    return float((trainer - rollouts.engine_logprobs)[rollouts.mask].abs().max())


@pytest.fixture(scope="module")
def rollouts(rollout: RolloutHandle, model: str) -> Rollouts:
    """Twelve rollouts, drawn in one chunk."""
    rollout.load_checkpoint(model, 0).result(WAIT)
    rollout.chunk_prompts = 6
    (drawn,) = draw(rollout, requests(range(6)))
    rollout.chunk_prompts = 3
    return drawn


def noise(rollouts: Rollouts, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rollouts.response_ids.shape, generator=generator)


@pytest.fixture(scope="module")
def batch(rollouts: Rollouts) -> PolicyBatch:
    """The rollouts with made-up advantages."""
    old = rollouts.engine_logprobs + 0.1 * noise(rollouts, 0)
    return PolicyBatch(rollouts, old, noise(rollouts, 1), shuffle_seed=1)


def reference_update(model: str, data: DataSlice, batch: PolicyBatch) -> PolicyWorker:
    """The same update in this process: plain torch, one rank, one micro-batch."""
    factory = WorkerFactory(Rank(), TRANSPORTS, "tests", cpu=True)
    plain = training(engine="torch", micro_batch_tokens=100_000)
    worker = PolicySpec(model, data, FP32, plain).build(factory)
    worker.update(batch, PPO)
    return worker


@pytest.mark.parametrize(
    "train",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3},
        {"zero_stage": 3, "offload": "parameters", "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_two_deepspeed_ranks_with_micro_batches_equal_plain_torch(
    cluster: Runtime, model: str, data: DataSlice, batch: PolicyBatch, train: dict[str, Any]
) -> None:
    policy = policy_of(cluster, model, data, "shm", **train)
    before = policy.logprobs(batch.rollouts).result(WAIT)
    stats = policy.update(batch).result(WAIT)
    found = policy.logprobs(batch.rollouts).result(WAIT)
    worker = reference_update(model, data, batch)
    expected = merge_rows([worker.logprobs(batch.rollouts)])
    mask = batch.rollouts.mask
    assert (found - expected)[mask].abs().max() < 2e-4
    assert (found - before)[mask].abs().max() > 1e-2, "the update must move the policy"
    assert np.isfinite(list(stats.values())).all()


@pytest.mark.parametrize("frozen", ["sharded", "offload"])
def test_a_sharded_reference_says_what_a_whole_one_does(
    cluster: Runtime, model: str, data: DataSlice, batch: PolicyBatch, frozen: str
) -> None:
    found = []
    for where in ("whole", frozen):
        reference = ReferenceHandle(cluster.group("reference"), "reference")
        reference.create(ReferenceSpec(model, data, FP32, 100, where)).result(WAIT)
        found.append(reference.logprobs(batch.rollouts).result(WAIT))
        reference.drop().result(WAIT)
    assert (found[0] - found[1]).abs().max() < 1e-5


@pytest.mark.parametrize("transport", ["shm", "ray", "broadcast"])
def test_after_every_sync_engine_and_trainer_agree(
    cluster: Runtime,
    model: str,
    data: DataSlice,
    rollout: RolloutHandle,
    transport: str,
) -> None:
    shown = replace(data, kind=RowKind.DEMONSTRATIONS, target="more_helpful")
    policy = policy_of(cluster, model, shown, transport, zero_stage=3 if transport == "ray" else 1)
    rollout.load_checkpoint(model, 0).result(WAIT)
    for version in range(3):
        rollout.load(policy.publish(version).result(WAIT)).result(WAIT)
        for drawn in draw(rollout, requests(range(6), iteration=version)):
            assert gap(policy.logprobs(drawn).result(WAIT), drawn) < 1e-4
            assert drawn.version == version
        policy.sft_step(list(range(12)), "token_mean").result(WAIT)
    stale = draw(rollout, requests(range(6)))[0]
    moved = gap(policy.logprobs(stale).result(WAIT), stale)
    assert moved > 1e-2, "without a sync the gap must show"


@pytest.fixture
def cool(rollout: RolloutHandle) -> Iterator[RolloutHandle]:
    """Engines that sample at temperature 0.7."""
    rollout.temperature = 0.7
    yield rollout
    rollout.temperature = 1.0


def test_engine_and_trainer_agree_at_another_temperature(
    cluster: Runtime, model: str, data: DataSlice, cool: RolloutHandle
) -> None:
    shown = replace(data, kind=RowKind.DEMONSTRATIONS, target="more_helpful")
    policy = policy_of(cluster, model, shown, "shm", zero_stage=1)
    policy.sft_step(list(range(12)), "token_mean").result(WAIT)
    cool.load_checkpoint(model, 0).result(WAIT)
    cool.load(policy.publish(1).result(WAIT)).result(WAIT)
    for drawn in draw(cool, requests(range(6))):
        assert drawn.temperature == 0.7
        trainer = policy.logprobs(drawn).result(WAIT)
        assert gap(trainer, drawn) < 1e-4
        plain = policy.logprobs(replace(drawn, temperature=1.0)).result(WAIT)
        assert gap(plain, drawn) > 1e-2, "another temperature is another distribution"
    # an update starts from the same distribution: no ratio has moved yet
    policy.settings = replace(PPO, epochs=1, minibatch=len(drawn))
    given = PolicyBatch(drawn, trainer, noise(drawn, 2), shuffle_seed=0)
    stats = policy.update(given).result(WAIT)
    assert stats["update_kl"] == pytest.approx(0.0, abs=1e-7)
    assert stats["clip_fraction"] == 0.0
    moved = gap(policy.logprobs(drawn).result(WAIT), drawn)
    assert moved > 1e-2, "the update must move the policy"
    cool.load(policy.publish(2).result(WAIT)).result(WAIT)
    for drawn in draw(cool, requests(range(6), iteration=2)):
        assert gap(policy.logprobs(drawn).result(WAIT), drawn) < 1e-4


def test_a_kept_engine_starts_from_the_weights_of_its_new_model(
    cluster: Runtime,
    model: str,
    data: DataSlice,
    rollout: RolloutHandle,
    run_config: RunConfig,
    tmp_path: Path,
) -> None:
    """Adapters send the layers they change; all others are those of the model itself."""
    other = tmp_path / "other"
    texts = [text for row in load_pairs(data.source, data.split).rows for text in row.texts]
    build_tiny_vlm(other, texts, TINY, seed=1)
    assert architecture_hash(str(other)) == architecture_hash(model), "the engine is kept"
    rollout.load_checkpoint(model, 0).result(WAIT)
    before = draw(rollout, requests(range(6)))[0]
    shown = replace(data, kind=RowKind.DEMONSTRATIONS, target="more_helpful")
    lora = {"zero_stage": 1, "lora_rank": 4}
    policy = policy_of(cluster, str(other), shown, "shm", **lora)
    assert gap(policy.logprobs(before).result(WAIT), before) > 1e-1, "the models differ"
    rollout.create(RolloutSpec(str(other), data, run_config.engine, FP32)).result(WAIT)
    for version in (1, 2):
        update = policy.publish(version).result(WAIT)
        assert len(update.entries) == 4 * TINY.layers
        rollout.load(update).result(WAIT)
        for drawn in draw(rollout, requests(range(6))):
            assert gap(policy.logprobs(drawn).result(WAIT), drawn) < 1e-4
        policy.sft_step(list(range(12)), "token_mean").result(WAIT)
    # and back, though the engine holds trained weights of the other model now
    rollout.create(RolloutSpec(model, data, run_config.engine, FP32)).result(WAIT)
    policy = policy_of(cluster, model, shown, "shm", **lora)
    rollout.load(policy.publish(3).result(WAIT)).result(WAIT)
    for drawn in draw(rollout, requests(range(6))):
        assert gap(policy.logprobs(drawn).result(WAIT), drawn) < 1e-4


def test_corrupted_weights_are_refused_and_the_engine_serves_no_prompt(
    cluster: Runtime, model: str, data: DataSlice, rollout: RolloutHandle
) -> None:
    policy = policy_of(cluster, model, data, "shm", zero_stage=1)
    rollout.load_checkpoint(model, 0).result(WAIT)
    update = policy.publish(7).result(WAIT)
    entry = update.entries[len(update.entries) // 2]
    mapped = np.memmap(update.handle, dtype=np.uint8, mode="r+")
    mapped[entry.start + 1] ^= 64
    mapped.flush()
    with pytest.raises(RoleError, match=f"SyncError.*{entry.name}"):
        rollout.load(update).result(WAIT)
    with pytest.raises(RoleError, match=r"SyncError.*fingerprint"):
        draw(rollout, requests(range(1)))
    rollout.load(policy.publish(8).result(WAIT)).result(WAIT)
    assert draw(rollout, requests(range(1)))[0].version == 8


def test_the_same_seeds_give_the_same_ids_however_prompts_are_chunked(
    model: str, rollouts: Rollouts, rollout: RolloutHandle
) -> None:
    rollout.load_checkpoint(model, 0).result(WAIT)
    parts = draw(rollout, requests(range(6)))  # two chunks of three prompts
    again = {
        (int(p), int(s)): ids[:n].tolist()
        for part in parts
        for p, s, ids, n in zip(
            part.prompt_index, part.sample_index, part.response_ids, part.lengths, strict=True
        )
    }
    once = rollouts  # one chunk of six prompts
    for row in range(len(once)):
        key = (int(once.prompt_index[row]), int(once.sample_index[row]))
        assert again[key] == once.response_ids[row, : once.lengths[row]].tolist()
    assert len({tuple(v) for v in again.values()}) > 6, "samples of one prompt must differ"


def test_greedy_does_not_depend_on_the_seed_and_special_ids_are_never_sampled(
    model: str, data: DataSlice, rollout: RolloutHandle
) -> None:
    rollout.load_checkpoint(model, 0).result(WAIT)
    first, second = (
        torch.cat([r.response_ids for r in draw(rollout, requests(range(6), 1, i), greedy=True)])
        for i in (0, 1)
    )
    assert torch.equal(first, second)
    encoder = WorkerFactory(Rank(), TRANSPORTS, "tests", cpu=True).encoder(model, data)
    special = set(encoder.tokenizer.all_special_ids) - {encoder.tokenizer.eos_token_id}
    for drawn in draw(rollout, requests(range(12), samples=8)):
        assert not special & set(drawn.response_ids[drawn.mask].tolist())


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_continues_bit_for_bit(
    cluster: Runtime, model: str, data: DataSlice, batch: PolicyBatch, stage: int, tmp_path: Path
) -> None:
    policy = policy_of(cluster, model, data, "shm", zero_stage=stage)
    policy.update(batch).result(WAIT)
    policy.save_state(tmp_path).result(WAIT)
    policy.update(batch).result(WAIT)
    expected = policy.logprobs(batch.rollouts).result(WAIT)
    policy = policy_of(cluster, model, data, "shm", zero_stage=stage)
    policy.load_state(tmp_path).result(WAIT)
    policy.update(batch).result(WAIT)
    assert torch.equal(policy.logprobs(batch.rollouts).result(WAIT), expected)


def test_saved_models_load_and_score_the_same(
    cluster: Runtime, model: str, data: DataSlice, rollouts: Rollouts, tmp_path: Path
) -> None:
    group, rows = cluster.group("cost"), list(range(12))
    trainer = ScorerTrainerHandle(group, ScorerLoss("cost", regularization=0.001))
    settings = training(zero_stage=3, micro_batch_tokens=200)
    trainer.create(ScorerTrainerSpec(model, data, FP32, settings)).result(WAIT)
    trainer.step(rows).result(WAIT)
    scorer = ScorerHandle(group, "cost")
    scores = scorer.score_pairs(rows).result(WAIT)
    trainer.save(tmp_path).result(WAIT)
    scorer.create(ScorerSpec(str(tmp_path), data, FP32, token_budget=200)).result(WAIT)
    assert torch.allclose(scorer.score_pairs(rows).result(WAIT), scores, atol=1e-5)
    critic = CriticHandle(cluster.group("cost_critic"), COST_CRITIC, PPO)
    critic.create(CriticSpec(str(tmp_path), data, FP32, settings)).result(WAIT)
    before = critic.values(rollouts).result(WAIT)
    given = ValueBatch(rollouts, noise(rollouts, 3), noise(rollouts, 4), shuffle_seed=1)
    losses = [critic.update(given).result(WAIT)["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]
    assert not torch.equal(critic.values(rollouts).result(WAIT), before)


def test_a_role_that_raises_is_named_with_its_cause(
    cluster: Runtime, model: str, data: DataSlice, rollouts: Rollouts
) -> None:
    reference = ReferenceHandle(cluster.group("reference"), "reference")
    reference.create(ReferenceSpec(model, data, FP32, token_budget=8192)).result(WAIT)
    other = [ids.roll(1) for ids in rollouts.prompt_ids]
    with pytest.raises(RoleError, match=r"role 'reference' failed.*DataError.*row-"):
        reference.logprobs(replace(rollouts, prompt_ids=other)).result(WAIT)
    reward = ScorerHandle(cluster.group("reward"), "reward")
    with pytest.raises(RoleError, match=r"'reward'.*ModelError.*no score head"):
        reward.create(ScorerSpec(model, data, FP32, token_budget=8192)).result(WAIT)


def test_a_prompt_without_an_image_is_answered_beside_one_with(
    cluster: Runtime, model: str, data: DataSlice, rollout: RolloutHandle, run_config: RunConfig
) -> None:
    folder = Path(data.source)
    rows = [{"question": "how do i use this ?"}, {"question": "what ?", "image": "images/3.png"}]
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed = DataSlice(data.source, "mixed", RowKind.PROMPTS, 96)
    rollout.create(RolloutSpec(model, mixed, run_config.engine, FP32)).result(WAIT)
    rollout.load_checkpoint(model, 0).result(WAIT)
    policy = policy_of(cluster, model, mixed, "shm")
    (drawn,) = draw(rollout, requests(range(2)))
    assert gap(policy.logprobs(drawn).result(WAIT), drawn) < 1e-4
    rollout.create(RolloutSpec(model, data, run_config.engine, FP32)).result(WAIT)

"""Real engines on one private Ray: what they compute, what they prove, how they fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from actors.proxies import (
    RemoteCritic,
    RemotePolicy,
    RemoteReference,
    RemoteRollout,
    ScorerLearner,
    SftLearner,
)
from rlsys.engines.policy import PolicyWorker

from actors.cluster import Cluster
from rlsys.batch import Rollouts, SampleRequest, TrainBatch, sample_seed
from rlsys.config.schema import OptimConfig, PpoConfig, RunConfig, TrainConfig
from rlsys.data.slice import DataSlice, RowKind
from rlsys.errors import RoleError
from rlsys.roles.factory import RoleSpec, Workbench
from rlsys.roles.forward import merge_rows
from rlsys.runtime.process_group import Rank
from rlsys.stages.scorer import ScorerStage
from rlsys.stages.sft import SftStage

WAIT = 120.0
PPO = PpoConfig(prompts=6, samples=2, max_new_tokens=8, epochs=2, minibatch=4)
OPTIM = OptimConfig(lr=1e-2)


def requests(prompts: range, samples: int = 2, iteration: int = 0) -> list[SampleRequest]:
    return [
        SampleRequest(p, s, sample_seed(0, iteration, p, s))
        for p in prompts
        for s in range(samples)
    ]


def policy_of(
    cluster: Cluster, model: str, data: DataSlice, transport: str, **train: object
) -> RemotePolicy:
    policy = RemotePolicy(cluster.by_role["policy"], PPO, transport, cluster.token)
    settings = TrainConfig(micro_batch_tokens=160, **train)  # type: ignore[arg-type]
    policy.create(RoleSpec("policy", model, data, 0, settings, OPTIM, 10)).result(WAIT)
    return policy


@pytest.fixture(scope="module")
def rollout(cluster: Cluster, model: str, data: DataSlice, run_config: RunConfig) -> RemoteRollout:
    engine = RemoteRollout(
        cluster.by_role["rollout"], max_new_tokens=8, temperature=1.0, chunk_prompts=3
    )
    engine.create(RoleSpec("rollout", model, data, engine=run_config.engine)).result(WAIT)
    return engine


def draw(rollout: RemoteRollout, wanted: list[SampleRequest], **how: bool) -> list[Rollouts]:
    return [pending.result(WAIT) for pending in rollout.generate(wanted, **how)]


@pytest.fixture(scope="module")
def batch(rollout: RemoteRollout, model: str) -> TrainBatch:
    """Twelve rollouts with made-up scores, for updates."""
    rollout.load_checkpoint(model, 0).result(WAIT)
    rollout.chunk_prompts = 6
    (rollouts,) = draw(rollout, requests(range(6)))
    rollout.chunk_prompts = 3
    shape = rollouts.response_ids.shape
    generator = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return TrainBatch(
        rollouts, rollouts.engine_logprobs + 0.1 * noise(), noise(), noise(), noise(), noise(),
        noise(), shuffle_seed=1,
    )  # fmt: skip


def reference_update(model: str, data: DataSlice, batch: TrainBatch) -> PolicyWorker:
    """The same update in this process: plain torch, one rank, one micro-batch."""
    bench = Workbench(Rank(), SharedMemoryReader(), cpu=True)
    settings = TrainConfig(engine="torch", micro_batch_tokens=100_000)
    worker = bench.build(RoleSpec("policy", model, data, 0, settings, OPTIM, 10))
    assert isinstance(worker, PolicyWorker)
    worker.update(batch, PPO)
    return worker


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_deepspeed_ranks_with_micro_batches_equal_plain_torch(
    cluster: Cluster, model: str, data: DataSlice, batch: TrainBatch, stage: int
) -> None:
    policy = policy_of(cluster, model, data, "shm", zero_stage=stage)
    before = policy.logprobs(batch.rollouts).result(WAIT)
    stats = policy.update(batch).result(WAIT)
    found = policy.logprobs(batch.rollouts).result(WAIT)
    worker = reference_update(model, data, batch)
    expected = merge_rows([worker.logprobs(batch.rollouts)])
    mask = batch.rollouts.mask
    assert (found - expected)[mask].abs().max() < 2e-4
    assert (found - before)[mask].abs().max() > 1e-2, "the update must move the policy"
    assert np.isfinite(list(stats.values())).all()


@pytest.mark.parametrize("transport", ["shm", "ray"])
def test_after_every_sync_engine_and_trainer_agree(
    cluster: Cluster,
    model: str,
    data: DataSlice,
    batch: TrainBatch,
    rollout: RemoteRollout,
    transport: str,
) -> None:
    learner = SftLearner(cluster.by_role["policy"], SftStage(steps=1))
    shown = replace(data, kind=RowKind.DEMONSTRATIONS, target="more_helpful")
    policy = policy_of(cluster, model, shown, transport, zero_stage=1)
    for version in range(3):
        rollout.load(policy.publish(version).result(WAIT)).result(WAIT)
        for rollouts in draw(rollout, requests(range(6), iteration=version)):
            trainer = policy.logprobs(rollouts).result(WAIT)
            gap = (trainer - rollouts.engine_logprobs)[rollouts.mask].abs().max()
            assert gap < 1e-4
            assert rollouts.version == version
        learner.step(list(range(12))).result(WAIT)
    stale = draw(rollout, requests(range(6)))[0]
    moved = policy.logprobs(stale).result(WAIT)
    gap = (moved - stale.engine_logprobs)[stale.mask].abs().max()
    assert gap > 1e-2, "without a sync the gap must show"


def test_corrupted_weights_are_refused_and_the_engine_serves_no_prompt(
    cluster: Cluster, model: str, data: DataSlice, batch: TrainBatch, rollout: RemoteRollout
) -> None:
    policy = policy_of(cluster, model, data, "shm", zero_stage=1)
    update = policy.publish(7).result(WAIT)
    entry = update.entries[len(update.entries) // 2]
    mapped = np.memmap(update.handle, dtype=np.uint8, mode="r+")
    mapped[entry.start + 1] ^= 64
    mapped.flush()
    with pytest.raises(RoleError, match=f"SyncError.*{entry.name}"):
        rollout.load(update).result(WAIT)
    with pytest.raises(RoleError, match=r"SyncError.*no proved weights"):
        draw(rollout, requests(range(1)))
    rollout.load(policy.publish(8).result(WAIT)).result(WAIT)
    assert draw(rollout, requests(range(1)))[0].version == 8


def test_the_same_seeds_give_the_same_ids_however_prompts_are_chunked(
    model: str, batch: TrainBatch, rollout: RemoteRollout
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
    once = batch.rollouts  # one chunk of six prompts
    for row in range(len(once)):
        key = (int(once.prompt_index[row]), int(once.sample_index[row]))
        assert again[key] == once.response_ids[row, : once.lengths[row]].tolist()
    assert len({tuple(v) for v in again.values()}) > 6, "samples of one prompt must differ"


def test_greedy_does_not_depend_on_the_seed_and_special_ids_are_never_sampled(
    model: str, data: DataSlice, rollout: RemoteRollout
) -> None:
    rollout.load_checkpoint(model, 0).result(WAIT)
    first, second = (
        torch.cat([r.response_ids for r in draw(rollout, requests(range(6), 1, i), greedy=True)])
        for i in (0, 1)
    )
    assert torch.equal(first, second)
    encoder = Workbench(Rank(), SharedMemoryReader(), cpu=True).encoder(model, data)
    special = set(encoder.tokenizer.all_special_ids) - {encoder.tokenizer.eos_token_id}
    for rollouts in draw(rollout, requests(range(12), samples=8)):
        assert not special & set(rollouts.response_ids[rollouts.mask].tolist())


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_continues_bit_for_bit(
    cluster: Cluster, model: str, data: DataSlice, batch: TrainBatch, stage: int, tmp_path: Path
) -> None:
    policy = policy_of(cluster, model, data, "shm", zero_stage=stage)
    policy.update(batch).result(WAIT)
    policy.save_state(str(tmp_path)).result(WAIT)
    policy.update(batch).result(WAIT)
    expected = policy.logprobs(batch.rollouts).result(WAIT)
    policy = policy_of(cluster, model, data, "shm", zero_stage=stage)
    policy.load_state(str(tmp_path)).result(WAIT)
    policy.update(batch).result(WAIT)
    assert torch.equal(policy.logprobs(batch.rollouts).result(WAIT), expected)


def test_saved_models_load_and_score_the_same(
    cluster: Cluster, model: str, data: DataSlice, batch: TrainBatch, tmp_path: Path
) -> None:
    stage = ScorerStage(kind="cost", init=model, steps=1)
    trainer = ScorerLearner(cluster.by_role["cost"], stage)
    settings = TrainConfig(zero_stage=3, micro_batch_tokens=200)
    trainer.create(RoleSpec("scorer_trainer", model, data, 0, settings, OPTIM, 5)).result(WAIT)
    rows = list(range(12))
    trainer.step(rows).result(WAIT)
    scores = trainer.score_pairs(rows).result(WAIT)
    trainer.save(str(tmp_path)).result(WAIT)
    trainer.create(RoleSpec("cost", str(tmp_path), data)).result(WAIT)
    assert torch.allclose(trainer.score_pairs(rows).result(WAIT), scores, atol=1e-5)
    critic = RemoteCritic(cluster.by_role["cost_critic"], "cost", PPO)
    critic.create(RoleSpec("cost_critic", str(tmp_path), data, 0, settings, OPTIM, 5)).result(WAIT)
    before = critic.values(batch.rollouts).result(WAIT)
    losses = [critic.update(batch).result(WAIT)["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]
    assert not torch.equal(critic.values(batch.rollouts).result(WAIT), before)


def test_a_role_that_raises_is_named_with_its_cause(
    cluster: Cluster, model: str, data: DataSlice, batch: TrainBatch
) -> None:
    reference = RemoteReference(cluster.by_role["reference"], "reference")
    reference.create(RoleSpec("reference", model, data)).result(WAIT)
    other = [ids.roll(1) for ids in batch.rollouts.prompt_ids]
    with pytest.raises(RoleError, match=r"role 'reference' failed.*DataError.*row-"):
        reference.logprobs(Rollouts(**(vars(batch.rollouts) | {"prompt_ids": other}))).result(WAIT)
    with pytest.raises(RoleError, match=r"'reward'.*ModelError.*no score head"):
        ScorerLearner(cluster.by_role["reward"], ScorerStage(kind="reward")).create(
            RoleSpec("reward", model, data)
        ).result(WAIT)


def test_a_prompt_without_an_image_is_answered_beside_one_with(
    cluster: Cluster, model: str, data: DataSlice, rollout: RemoteRollout, run_config: RunConfig
) -> None:
    folder = Path(data.source)
    rows = [{"question": "how do i use this ?"}, {"question": "what ?", "image": "images/3.png"}]
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed = DataSlice(data.source, "mixed", RowKind.PROMPTS, 96)
    rollout.create(RoleSpec("rollout", model, mixed, engine=run_config.engine)).result(WAIT)
    rollout.load_checkpoint(model, 0).result(WAIT)
    policy = policy_of(cluster, model, mixed, "shm")
    (rollouts,) = draw(rollout, requests(range(2)))
    gap = (policy.logprobs(rollouts).result(WAIT) - rollouts.engine_logprobs)[rollouts.mask]
    assert gap.abs().max() < 1e-4
    rollout.create(RoleSpec("rollout", model, data, engine=run_config.engine)).result(WAIT)

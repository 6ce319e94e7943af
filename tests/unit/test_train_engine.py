"""One optimiser step is one step however it is cut, and padding has no say in it."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsys.batch import PolicyBatch, PreferencePairs, PromptCursor, Rollouts, ValueBatch
from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.collate import labelled_pairs
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import PreferencePair, Rows, demonstration
from rlsys.engines.schedules import lr_factor
from rlsys.errors import ConfigError, DataError
from rlsys.micro_batches import Tokens, micro_batches
from rlsys.models.heads import build_policy_module, build_scorer_module
from rlsys.models.load import forbidden_ids
from rlsys.roles.critic import CriticWorker
from rlsys.roles.forward import merge_rows
from rlsys.roles.policy import PolicyWorker
from rlsys.roles.scorer import ScorerLoss, ScorerTrainer, ScorerWorker
from rlsys.roles.trained import Stats, Training, merge_stats
from rlsys.runtime.process_group import Rank
from rlsys.stages.dpo import DpoStage
from rlsys.stages.safe_rlhf import SafeRlhfStage
from rlsys.stages.supervised import steps_of
from tests.helpers import worker_context

ONE_BATCH, SMALL = 100_000, 60
OPTIM = OptimConfig(lr=1e-3, warmup_steps=2, weight_decay=0.01)
TRAINING = Training(TrainConfig(engine="torch"), OPTIM, total_steps=10, seed=0)
PPO = PpoConfig(num_prompts=4, samples_per_prompt=2, max_new_tokens=6, epochs=1, minibatch=8)
LENGTHS = [3, 6, 1, 4, 2, 5, 6, 1]

Worker = PolicyWorker | CriticWorker | ScorerTrainer


@dataclass(frozen=True)
class Batches:
    """The same rollouts, for the policy and for a critic."""

    policy: PolicyBatch
    value: ValueBatch


@pytest.fixture(scope="module")
def batch(encoder: PromptEncoder) -> Batches:
    """Two rollouts of every prompt with random answers, and random but finite targets."""
    generator = torch.Generator().manual_seed(5)
    index = [0, 0, 1, 1, 2, 2, 3, 3]
    shape = (len(index), PPO.max_new_tokens)
    letters = encoder.response("abcdefgh it is not safe")[:-1]
    picks = torch.randint(len(letters), shape, generator=generator)
    rollouts = Rollouts(
        prompt_index=torch.tensor(index),
        sample_index=torch.tensor([0, 1] * 4),
        prompt_ids=[prompt.expanded for prompt in encoder.prompts(index)],
        response_ids=letters[picks],
        lengths=torch.tensor(LENGTHS),
        engine_logprobs=torch.zeros(shape),
        finished=torch.ones(len(index), dtype=torch.bool),
        version=0,
    )

    def draw(mean: float) -> Tensor:
        values = mean + torch.randn(shape, generator=generator)
        return values.masked_fill(~rollouts.mask, 0.0)

    return Batches(
        PolicyBatch(rollouts, old_logprobs=draw(-5.5), advantages=draw(0.0), shuffle_seed=3),
        ValueBatch(rollouts, old_values=draw(0.0), returns=draw(0.0), shuffle_seed=3),
    )


def policy(tiny: str, encoder: PromptEncoder, budget: int = ONE_BATCH) -> PolicyWorker:
    module = build_policy_module(tiny, "float32", ())
    module.forbidden = tuple(forbidden_ids(encoder.processor, module.vlm.config))
    return PolicyWorker(module, worker_context(encoder, budget), TRAINING)


def imitator(
    tiny: str, encoder: PromptEncoder, budget: int = ONE_BATCH, target: str = "more_helpful"
) -> PolicyWorker:
    """A policy that is shown the ``target`` response of every pair."""
    pairs = encoder.records.of_kind(PAIRS, PreferencePair)
    shown = Rows([demonstration(pair, target) for pair in pairs])
    return policy(tiny, PromptEncoder(encoder.processor, shown, 128), budget)


def critic(tiny: str, encoder: PromptEncoder, budget: int = ONE_BATCH) -> CriticWorker:
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1)
    return CriticWorker(module, worker_context(encoder, budget), TRAINING)


def trainer(tiny: str, encoder: PromptEncoder, budget: int = ONE_BATCH) -> ScorerTrainer:
    module = build_scorer_module(tiny, "float32", new_head=True, seed=1)
    return ScorerTrainer(module, worker_context(encoder, budget), TRAINING)


def weights(worker: Worker) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in worker.engine.full_params()}


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def known_pairs(worker: PolicyWorker, target: str = "safer") -> PreferencePairs:
    """The labelled pairs of all four rows; the reference lies half a nat from the policy."""
    encoder = worker.context.encoder
    pairs = labelled_pairs(encoder.records, PAIRS, target, encoder.tokenizer)
    sums = merge_rows([worker.pair_logprobs(pairs)])
    return replace(pairs, reference=sums + torch.tensor([0.5, -0.5]))


Step = tuple[Callable[..., Any], Callable[[Any, Batches], Stats]]
PAIRS = [0, 1, 2, 3]
REWARD = ScorerLoss("reward", regularization=0.001)
COST = ScorerLoss("cost", regularization=0.001, label_mode="graded")
STEPS: dict[str, Step] = {
    "policy": (policy, lambda worker, batch: worker.update(batch.policy, PPO)),
    "policy_by_sequence": (
        policy,
        lambda worker, batch: worker.update(batch.policy, replace(PPO, loss_form="sequence_mean")),
    ),
    "policy with the KL in its loss": (
        policy,
        lambda worker, batch: worker.update(
            replace(batch.policy, reference_logprobs=batch.policy.old_logprobs, kl_beta=0.5), PPO
        ),
    ),
    "policy in one step": (
        policy,
        lambda worker, batch: worker.update_once(replace(batch.policy, old_logprobs=None), PPO)[0],
    ),
    "sft": (imitator, lambda worker, _: worker.sft_step(PAIRS, "token_mean")),
    "sft by sequence": (imitator, lambda worker, _: worker.sft_step(PAIRS, "sequence_mean")),
    "dpo": (policy, lambda worker, _: worker.dpo_step(known_pairs(worker), 0.5)),
    "critic": (critic, lambda worker, batch: worker.update(batch.value, PPO)),
    "reward": (trainer, lambda worker, _: worker.step(PAIRS, REWARD)),
    "cost": (trainer, lambda worker, _: worker.step(PAIRS, COST)),
}


def test_one_step_finds_the_old_logprobs_itself(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    """To the same weights, metrics and log-probabilities as with a forward pass before it."""
    once, twice = (policy(tiny, encoder, SMALL) for _ in range(2))
    rollouts = batch.policy.rollouts
    rows, known = twice.logprobs(rollouts)
    old = merge_rows([(rows, known)])
    every = replace(PPO, epochs=1, minibatch=len(rollouts))
    reference = old + 0.1
    given = replace(batch.policy, old_logprobs=old, reference_logprobs=reference, kl_beta=0.5)
    expected = twice.update(given, every)
    stats, found = once.update_once(replace(given, old_logprobs=None), every)
    torch.testing.assert_close(merge_rows([found]), old.masked_fill(~rollouts.mask, 0.0))
    assert stats.shares == pytest.approx(expected.shares, abs=1e-6)
    assert distance(weights(once), weights(twice)) < 1e-6


@pytest.mark.parametrize("name", STEPS)
def test_micro_batches_are_one_step(
    name: str, tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    make, step = STEPS[name]
    whole, cut = make(tiny, encoder), make(tiny, encoder, SMALL)
    before = weights(whole)
    calls = {"whole": 0, "cut": 0}
    for worker in (whole, cut):
        # A step in proportion to the gradient: Adam's usual eps blows rounding up to whole steps.
        worker.engine.optimizer.param_groups[0].update(eps=1.0, lr=0.1)
    for label, worker in (("whole", whole), ("cut", cut)):
        backward = worker.engine.backward

        def counted(loss: Tensor, label: str = label, backward: Any = backward) -> None:
            calls[label] += 1
            backward(loss)

        worker.engine.backward = counted
    stats = [merge_stats([step(worker, batch)]) for worker in (whole, cut)]
    assert calls["whole"] == 1
    assert calls["cut"] > 1
    assert stats[0] == pytest.approx(stats[1], rel=1e-4, abs=1e-6)
    after = weights(whole)
    assert distance(before, after) > 1e-3  # it moved
    assert distance(after, weights(cut)) <= 1e-6


def test_gradients_of_two_ranks_add_up_to_one_rank(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    """Each rank of two takes its share of the rows; the sum is the whole step's gradient."""
    gradients: list[dict[str, Tensor]] = []
    for ranks in ([Rank()], [Rank(0, 2), Rank(1, 2)]):
        total: dict[str, Tensor] = {}
        for rank in ranks:
            worker = policy(tiny, encoder)
            worker.context = replace(worker.context, rank=rank)
            worker.engine.step = lambda: {}  # type: ignore[method-assign]
            worker.update(batch.policy, PPO)
            for name, parameter in worker.module.named_parameters():
                total[name] = total.get(name, 0) + parameter.grad
        gradients.append(total)
    largest = max(float(t.abs().max()) for t in gradients[0].values())
    assert largest > 1e-3
    assert distance(*gradients) <= 1e-5 * max(largest, 1.0)


def test_a_rank_without_rows_adds_nothing(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    """One pair over two ranks: the idle one runs a spare row with zero weight."""
    worker = trainer(tiny, encoder)
    worker.context = replace(worker.context, rank=Rank(1, 2))
    worker.engine.step = lambda: {}  # type: ignore[method-assign]
    assert micro_batches([0], [Tokens(0, 9, (1,))], token_budget=ONE_BATCH, world=2)[1] == [[]]
    stats = worker.step([2], REWARD)
    assert stats.shares == {"loss": 0.0, "accuracy": 0.0}
    gradients = [p.grad for p in worker.module.parameters() if p.grad is not None]
    assert gradients
    assert all(bool((g == 0).all()) for g in gradients)


def test_ranks_return_their_own_rows_of_one_step(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    """Over nine ranks for eight rows, so that one has none."""
    worker = policy(tiny, encoder)
    worker.engine.step = lambda: {}  # type: ignore[method-assign]
    given = replace(batch.policy, old_logprobs=None)
    old = merge_rows([worker.logprobs(given.rollouts)])
    parts = []
    for rank in range(9):
        worker.context = replace(worker.context, rank=Rank(rank, 9))
        parts.append(worker.update_once(given, PPO)[1])
    assert sorted(len(rows) for rows, _ in parts)[0] == 0
    assert sorted(row for rows, _ in parts for row in rows) == list(range(8))
    torch.testing.assert_close(merge_rows(parts), old.masked_fill(~given.rollouts.mask, 0.0))


@pytest.mark.parametrize("field", ["old_logprobs", "advantages"])
def test_padding_of_a_policy_batch_moves_no_policy_parameter(
    field: str, tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    plain, soiled = policy(tiny, encoder), policy(tiny, encoder)
    given = batch.policy
    values = getattr(given, field).masked_fill(~given.rollouts.mask, float("nan"))
    expected = plain.update(given, PPO)
    assert soiled.update(replace(given, **{field: values}), PPO) == expected
    assert distance(weights(plain), weights(soiled)) == 0.0


@pytest.mark.parametrize("field", ["returns", "old_values"])
def test_padding_of_a_value_batch_moves_no_critic_parameter(
    field: str, tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    plain, soiled = critic(tiny, encoder), critic(tiny, encoder)
    given = batch.value
    values = getattr(given, field).masked_fill(~given.rollouts.mask, float("nan"))
    expected = plain.update(given, PPO)
    assert soiled.update(replace(given, **{field: values}), PPO) == expected
    assert distance(weights(plain), weights(soiled)) == 0.0


def test_padding_of_response_ids_moves_no_parameter(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    rollouts = batch.policy.rollouts
    ids = rollouts.response_ids.masked_fill(~rollouts.mask, 3)
    other = replace(batch.policy, rollouts=replace(rollouts, response_ids=ids))
    assert not torch.equal(ids, rollouts.response_ids)
    plain, soiled = policy(tiny, encoder), policy(tiny, encoder)
    plain.update(batch.policy, PPO)
    soiled.update(other, PPO)
    assert distance(weights(plain), weights(soiled)) == 0.0


def test_a_critic_moves_towards_its_returns(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    rollouts = batch.value.rollouts
    for goal in (1.0, -1.0):
        worker = critic(tiny, encoder)
        old = merge_rows([worker.values(rollouts)])
        wanted = replace(batch.value, old_values=old, returns=torch.full_like(old, goal))
        for _ in range(3):
            worker.update(wanted, PPO)
        moved = (merge_rows([worker.values(rollouts)]) - old)[rollouts.mask].mean()
        assert float(moved) * goal > 0


def test_epochs_and_minibatches_give_that_many_steps(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    worker = policy(tiny, encoder)
    rates: list[float] = []
    step = worker.engine.step

    def counted() -> dict[str, float]:
        metrics = step()
        rates.append(metrics["lr"])
        return metrics

    worker.engine.step = counted  # type: ignore[method-assign]
    worker.update(batch.policy, replace(PPO, epochs=2, minibatch=3))
    # 3 steps per epoch over 8 rows; warm-up of 2 steps, then constant
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])


def test_an_advantage_moves_the_probability_its_way(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    rollouts = batch.policy.rollouts
    for sign in (1.0, -1.0):
        worker = policy(tiny, encoder)
        old = merge_rows([worker.logprobs(rollouts)])
        liked = replace(batch.policy, old_logprobs=old, advantages=torch.full_like(old, sign))
        for _ in range(3):
            worker.update(liked, PPO)
        moved = (merge_rows([worker.logprobs(rollouts)]) - old)[rollouts.mask].mean()
        assert float(moved) * sign > 0


def test_supervised_steps_imitate_the_chosen_response(tiny: str, encoder: PromptEncoder) -> None:
    worker = imitator(tiny, encoder, target="safer")
    losses = [worker.sft_step(PAIRS, "token_mean").shares["loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5
    more_helpful = imitator(tiny, encoder, target="more_helpful")
    more_helpful.sft_step(PAIRS, "token_mean")
    safer = imitator(tiny, encoder, target="safer")
    safer.sft_step(PAIRS, "token_mean")
    assert distance(weights(more_helpful), weights(safer)) > 1e-5


@pytest.mark.parametrize("target", ["more_helpful", "safer"])
def test_preference_steps_part_the_pairs_from_log_two(
    target: str, tiny: str, encoder: PromptEncoder
) -> None:
    worker = policy(tiny, encoder)
    pairs = labelled_pairs(encoder.records, PAIRS, target, encoder.tokenizer)
    chosen = [r.responses[getattr(r, target)] for r in encoder.records.rows]
    assert [encoder.decode(ids) for ids in pairs.chosen] == chosen
    pairs = replace(pairs, reference=merge_rows([worker.pair_logprobs(pairs)]))
    first = worker.dpo_step(pairs, 0.5).shares
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["margin"] == pytest.approx(0.0, abs=1e-4)
    for _ in range(6):
        last = worker.dpo_step(pairs, 0.5).shares
    assert last["loss"] < first["loss"]
    assert last["accuracy"] == pytest.approx(1.0)


def test_pair_logprobs_are_the_sums_of_token_logprobs(
    tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    worker, rollouts = policy(tiny, encoder, SMALL), batch.policy.rollouts
    logprobs = merge_rows([worker.logprobs(rollouts)])
    sums = logprobs.masked_fill(~rollouts.mask, 0.0).sum(-1)
    answers = [ids[:n] for ids, n in zip(rollouts.response_ids, LENGTHS, strict=True)]
    pairs = PreferencePairs(rollouts.prompt_index[0::2], answers[0::2], answers[1::2])
    found = merge_rows([worker.pair_logprobs(pairs)])
    torch.testing.assert_close(found, sums.reshape(-1, 2), atol=1e-4, rtol=1e-5)


def test_preference_pairs_without_a_reference_teach_nothing(
    tiny: str, encoder: PromptEncoder
) -> None:
    worker = policy(tiny, encoder)
    pairs = labelled_pairs(encoder.records, PAIRS, "safer", encoder.tokenizer)
    with pytest.raises(ValueError, match="reference"):
        worker.dpo_step(pairs, 0.1)
    with pytest.raises(DataError, match="not finite"):
        replace(pairs, reference=torch.full((4, 2), float("nan")))


@pytest.mark.parametrize(
    ("loss", "higher"),
    [
        (REWARD, "more_helpful"),
        (replace(REWARD, target="safer"), "safer"),
        (COST, "unsafe"),
        (replace(COST, sign_scale=0.0), "unsafe"),
    ],
)
def test_a_trainer_pulls_the_pairs_apart(
    loss: ScorerLoss, higher: str, tiny: str, encoder: PromptEncoder
) -> None:
    worker = trainer(tiny, encoder)
    records = [encoder.records[row] for row in PAIRS]
    numbers = {"more_helpful": lambda r: r.more_helpful, "safer": lambda r: r.safer}
    up = [numbers.get(higher, lambda r: 1 - r.safer)(r) for r in records]

    def margins() -> Tensor:
        scores, first = merge_rows([worker.score_pairs(PAIRS)]), torch.tensor(up)[:, None]
        return (scores.gather(1, first) - scores.gather(1, 1 - first)).squeeze(1)

    before = margins()
    for _ in range(4):
        worker.step(PAIRS, loss)
    assert bool((margins() > before).all())


def test_a_saved_scorer_scores_the_same_when_loaded(
    tiny: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    worker = trainer(tiny, encoder)
    worker.step(PAIRS, REWARD)
    worker.save_model(tmp_path)
    loaded = build_scorer_module(str(tmp_path), "float32", new_head=False, seed=0)
    again = ScorerWorker(loaded, worker_context(encoder, ONE_BATCH))
    torch.testing.assert_close(again.score_pairs(PAIRS), worker.score_pairs(PAIRS))


def test_a_saved_policy_says_the_same_when_loaded(
    tiny: str, encoder: PromptEncoder, batch: Batches, tmp_path: Path
) -> None:
    worker = policy(tiny, encoder)
    worker.update(batch.policy, PPO)
    worker.save_model(tmp_path)
    again = policy(str(tmp_path), encoder)
    assert distance(weights(worker), weights(again)) == 0.0


RESUMED: dict[str, Step] = {name: STEPS[name] for name in ("policy", "critic", "reward")}


def noisy(worker: Worker) -> Worker:
    """Its forward pass draws from torch's generator, as dropout does."""
    model = worker.module.vlm if isinstance(worker, PolicyWorker) else worker.module.trunk
    model.get_input_embeddings().register_forward_hook(
        lambda _, __, embedded: embedded + 0.05 * torch.randn_like(embedded)
    )
    return worker


@pytest.mark.parametrize("name", RESUMED)
def test_a_saved_state_continues_bit_for_bit(
    name: str, tiny: str, encoder: PromptEncoder, batch: Batches, tmp_path: Path
) -> None:
    make, step = RESUMED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        worker = noisy(make(tiny, encoder))
        for _ in range(2):
            step(worker, batch)
        worker.save_state(tmp_path, name)
        drawn = torch.get_rng_state()
        following = [step(worker, batch) for _ in range(2)]
        resumed = noisy(make(tiny, encoder))
        torch.manual_seed(1)
        resumed.load_state(tmp_path, name)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert [step(resumed, batch) for _ in range(2)] == following
        assert distance(weights(worker), weights(resumed)) == 0.0
        other = noisy(make(tiny, encoder))
        other.load_state(tmp_path, name)
        torch.manual_seed(1)
        assert step(other, batch) != following[0]  # the random state does matter here


# learning rate


def test_the_learning_rate_warms_up_in_equal_steps() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=4)
    assert [lr_factor(step, optim, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_cosine_starts_whole_and_ends_at_a_tenth() -> None:
    optim = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=10)
    assert lr_factor(9, optim, 110) == 1.0
    assert lr_factor(10, optim, 110) == 1.0
    assert lr_factor(60, optim, 110) == pytest.approx(0.55)
    assert lr_factor(110, optim, 110) == pytest.approx(0.1)
    assert lr_factor(500, optim, 110) == pytest.approx(0.1)
    factors = [lr_factor(step, optim, 110) for step in range(10, 111)]
    assert factors == sorted(factors, reverse=True)


def test_a_warm_up_may_be_a_share_of_all_steps() -> None:
    share, steps = OptimConfig(lr=1.0, warmup_ratio=0.03), OptimConfig(lr=1.0, warmup_steps=3)
    for step in range(100):
        assert lr_factor(step, share, 100) == lr_factor(step, steps, 100)
    assert lr_factor(0, share, 34) == 0.5, "rounded up to two steps"
    with pytest.raises(ConfigError, match="warmup_ratio: give either"):
        OptimConfig(lr=1.0, warmup_steps=1, warmup_ratio=0.1).check()


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_a_cosine_ends_at_its_share(final: float) -> None:
    optim = OptimConfig(lr=1.0, schedule="cosine", final_lr=final)
    assert lr_factor(0, optim, 100) == 1.0
    assert lr_factor(50, optim, 100) == pytest.approx((1 + final) / 2)
    assert lr_factor(100, optim, 100) == pytest.approx(final)


def test_epochs_are_steps_until_every_row_was_in_them() -> None:
    assert steps_of(3, 100, 32) == 10, "300 rows in batches of 32"
    assert steps_of(1, 8, 32) == 1, "batches of all rows"
    assert steps_of(0.25, 128, 32) == 1
    cursor, seen = PromptCursor(100, seed=0), Counter[int]()
    for _ in range(steps_of(2, 100, 32)):
        seen.update(cursor.next(32))
    assert seen.total() >= 2 * 100
    assert len(seen) == 100
    assert DpoStage(init="x", epochs=3, batch=32).steps_on(100) == 10
    assert DpoStage(init="x", steps=7).steps_on(100) == 7
    ppo = PpoConfig(num_prompts=32)
    assert SafeRlhfStage(epochs=3).iterations_on(100, ppo) == 10
    assert SafeRlhfStage(iterations=5).iterations_on(100, ppo) == 5


@pytest.mark.parametrize("given", [{}, {"steps": 1, "epochs": 1.0}])
def test_a_stage_needs_one_length(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give either steps or epochs"):
        DpoStage(init="x", **given).check()
    named = {"iterations" if key == "steps" else key: value for key, value in given.items()}
    with pytest.raises(ConfigError, match="give either iterations or epochs"):
        SafeRlhfStage(**named).check()


# gradient checkpointing


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_checkpointed_layers_run_twice_for_the_same_step(
    lora_rank: int, tiny: str, encoder: PromptEncoder, batch: Batches
) -> None:
    found, runs = [], []
    for checkpointed in (False, True):
        train = TrainConfig(
            engine="torch", gradient_checkpointing=checkpointed, lora_rank=lora_rank
        )
        module = build_policy_module(tiny, "float32", ())
        training = Training(train, OPTIM, total_steps=10, seed=0)
        worker = PolicyWorker(module, worker_context(encoder, ONE_BATCH), training)
        counted: list[int] = []
        mlp = module.vlm.base_model.language_model.layers[0].mlp
        mlp.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        worker.update(batch.policy, PPO)
        found.append(weights(worker))
        runs.append(len(counted))
    assert distance(*found) < 1e-6
    assert runs[1] == 2 * runs[0] > 0


def test_a_schedule_without_warm_up_starts_whole() -> None:
    for schedule in ("constant", "cosine"):
        assert lr_factor(0, OptimConfig(lr=1.0, schedule=schedule), 0) == 1.0

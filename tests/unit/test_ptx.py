"""PTX: demonstrations in every policy step of PPO-Lagrangian."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlsys.batch import PolicyBatch, PromptCursor
from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import PreferencePair, Rows, demonstration
from rlsys.drivers.sampling import demonstration_rows, total_steps
from rlsys.errors import ConfigError
from rlsys.models.heads import build_policy_module
from rlsys.models.load import forbidden_ids
from rlsys.roles.policy import PolicyWorker
from rlsys.roles.trained import Training, merge_stats
from rlsys.runtime.process_group import Rank
from tests.fakes import make_rollouts
from tests.helpers import worker_context

ONE_BATCH, SMALL = 100_000, 60
ROWS = [0, 1, 2, 3]
PPO = PpoConfig(num_prompts=4, samples_per_prompt=1, max_new_tokens=4, minibatch=4)


@pytest.fixture(scope="module")
def shown(encoder: PromptEncoder) -> PromptEncoder:
    pairs = encoder.records.of_kind(ROWS, PreferencePair)
    rows = Rows([demonstration(pair, "more_helpful") for pair in pairs])
    return PromptEncoder(encoder.processor, rows, max_prompt_tokens=128)


@pytest.fixture(scope="module")
def batch(encoder: PromptEncoder) -> PolicyBatch:
    prompts = [prompt.expanded for prompt in encoder.prompts(ROWS)]
    answers = encoder.response("abcdefgh")[:4].repeat(4, 1)
    rollouts = make_rollouts([(row, 0) for row in ROWS])
    rollouts = replace(rollouts, prompt_ids=prompts, response_ids=answers)
    generator = torch.Generator().manual_seed(5)
    advantages = torch.randn(rollouts.response_ids.shape, generator=generator)
    return PolicyBatch(rollouts, rollouts.engine_logprobs, advantages, shuffle_seed=3)


def worker(
    tiny: str, encoder: PromptEncoder, shown: PromptEncoder, budget: int, rank: Rank | None = None
) -> PolicyWorker:
    module = build_policy_module(tiny, "float32", ())
    module.forbidden = tuple(forbidden_ids(encoder.processor, module.vlm.config))
    optim = OptimConfig(lr=1e-3, grad_clip=1e9)
    training = Training(TrainConfig(engine="torch"), optim, total_steps=10, seed=0)
    return PolicyWorker(module, worker_context(encoder, budget, rank), training, shown)


def keep_gradients(each: PolicyWorker) -> None:
    """Those of the next step, which is not taken."""
    each.engine.step = lambda: {}  # type: ignore[method-assign]


def collected(each: PolicyWorker) -> dict[str, Tensor]:
    return {n: p.grad for n, p in each.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", ["token_mean", "sequence_mean"])
def test_a_step_has_both_gradients_however_it_is_cut(
    form: str, tiny: str, encoder: PromptEncoder, shown: PromptEncoder, batch: PolicyBatch
) -> None:
    """The sum of plain PPO's and 0.5 of supervised fine-tuning's, whose own norm is logged."""
    ppo, coef, rows = replace(PPO, loss_form=form), 0.5, [2, 0]
    alone, imitator = (worker(tiny, encoder, shown, ONE_BATCH) for _ in range(2))
    imitator.context = worker_context(shown, ONE_BATCH)
    for each in (alone, imitator):
        keep_gradients(each)
    alone.update(batch, ppo)
    loss = merge_stats([imitator.sft_step(rows, form)])["loss"]
    wanted, term = collected(alone), collected(imitator)
    norm = coef * float(torch.stack([g.norm() for g in term.values()]).norm())
    both = replace(batch, demonstrations=[rows], ptx_coef=coef)
    for budget in (ONE_BATCH, SMALL):
        each = worker(tiny, encoder, shown, budget)
        keep_gradients(each)
        stats = merge_stats([each.update(both, ppo)])
        assert stats["ptx_loss"] == pytest.approx(loss, rel=1e-4)
        assert stats["ptx_grad_norm"] == pytest.approx(norm, rel=1e-4)
        for name, found in collected(each).items():
            expected = wanted[name] + coef * term[name]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_two_ranks_are_one_batch(
    tiny: str, encoder: PromptEncoder, shown: PromptEncoder, batch: PolicyBatch
) -> None:
    both = replace(batch, demonstrations=[[1, 3, 0]], ptx_coef=2.0)
    losses, sums = [], []
    for ranks in ([Rank()], [Rank(0, 2), Rank(1, 2)]):
        total: dict[str, Tensor] = {}
        loss = 0.0
        for rank in ranks:
            each = worker(tiny, encoder, shown, ONE_BATCH, rank)
            keep_gradients(each)
            # A process alone cannot reduce over two.
            each.engine.rank = Rank()  # type: ignore[attr-defined]
            loss += each.update(both, PPO).shares["ptx_loss"]
            for name, gradient in collected(each).items():
                total[name] = total.get(name, torch.zeros_like(gradient)) + gradient
        losses.append(loss)
        sums.append(total)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, gradient in sums[0].items():
        torch.testing.assert_close(gradient, sums[1][name], rtol=1e-4, atol=1e-6)


def test_without_demonstrations_nothing_is_logged(
    tiny: str, encoder: PromptEncoder, shown: PromptEncoder, batch: PolicyBatch
) -> None:
    stats = merge_stats([worker(tiny, encoder, shown, ONE_BATCH).update(batch, PPO)])
    assert not [name for name in stats if "ptx" in name]


def test_the_number_of_a_step_determines_its_rows() -> None:
    """Two epochs of three steps of four samples; of nine demonstrations none is shown twice until
    all were."""
    ppo = PpoConfig(num_prompts=6, samples_per_prompt=2, minibatch=4, epochs=2)
    assert total_steps(ppo, 1) == 6
    drawn = [demonstration_rows(ppo, 9, seed=7, iteration=i) for i in range(3)]
    assert [[len(rows) for rows in steps] for steps in drawn] == [[4] * 6] * 3
    steps = [rows for each in drawn for rows in each]
    assert steps[0] + steps[1] == PromptCursor(9, 7).next(8)
    assert all(len(set(rows)) == 4 for rows in steps)
    assert {row for rows in drawn[0] for row in rows} == set(range(9))
    assert demonstration_rows(ppo, 9, seed=7, iteration=2) == drawn[2], "whatever was drawn before"
    assert demonstration_rows(ppo, 9, seed=8, iteration=2) != drawn[2]
    assert demonstration_rows(ppo, 3, seed=7, iteration=0) == [
        PromptCursor(3, 7, 3 * step).next(3) for step in range(6)
    ]
    assert demonstration_rows(ppo, 0, seed=7, iteration=0) == []


def test_the_norm_of_its_gradient_need_not_be_measured(
    tiny: str, encoder: PromptEncoder, shown: PromptEncoder, batch: PolicyBatch
) -> None:
    found, stats = [], []
    for measured in (True, False):
        each = worker(tiny, encoder, shown, ONE_BATCH)
        given = replace(batch, demonstrations=[ROWS], ptx_coef=2.0, ptx_measured=measured)
        stats.append(each.update(given, PPO).common)
        found.append({name: value.clone() for name, value in each.engine.full_params()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert "ptx_grad_norm" in stats[0]
    assert "ptx_grad_norm" not in stats[1]


def test_a_weight_needs_a_split() -> None:
    with pytest.raises(ConfigError, match="ptx_split: name a split of demonstrations"):
        PpoConfig(ptx_coef=0.1).check()
    PpoConfig(ptx_coef=0.1, ptx_split="pretrain").check()
    PpoConfig(ptx_split="pretrain").check()

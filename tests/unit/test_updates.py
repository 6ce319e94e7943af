"""What reaches the loss of an update: settings and labels, on outputs that are given."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rlsys.batch import PolicyBatch, Rollouts, ValueBatch
from rlsys.config.updates import PpoConfig
from rlsys.data.rows import PreferencePair, Rows
from rlsys.roles import clipped, critic
from rlsys.roles.critic import CriticWorker
from rlsys.roles.policy import PolicyWorker
from rlsys.roles.scorer import ScorerLoss, ScorerTrainer
from rlsys.runtime.process_group import Rank
from tests.fakes import make_rollouts

LENGTHS = [1, 4]  # of the two responses: a mean over tokens is not one over responses
PPO = PpoConfig(minibatch=2, policy_clip=0.5, value_clip=0.5)


class GivenEngine:
    """A module whose output for a row is known, and whose losses are kept."""

    def __init__(self, outputs: Tensor) -> None:
        self.module, self.outputs = nn.Identity(), outputs
        self.losses: list[float] = []
        self.temperatures: list[float] = []

    def forward(self, rows: list[int], _: Any, __: Any = None, temperature: float = 1.0) -> Tensor:
        self.temperatures.append(temperature)
        return self.outputs[rows]

    def backward(self, loss: Tensor) -> None:
        self.losses.append(float(loss))

    def step(self) -> dict[str, float]:
        return {}


def rollouts() -> Rollouts:
    made = make_rollouts([(0, 0), (1, 0)])
    assert made.lengths.tolist() == LENGTHS
    return made


def tokens(first: float, second: float) -> Tensor:
    """[2, 4], the same number at every token of a response."""
    return torch.tensor([[first], [second]]).expand(2, 4).clone()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, Tensor], Any]:
    """A worker of a class over a ``GivenEngine`` with these outputs."""

    def inputs(encoder: object, rollouts: Rollouts, rows: list[int]) -> SimpleNamespace:
        return SimpleNamespace(inputs=rows, logit_positions=None, labels=None)

    monkeypatch.setattr(critic, "collate_rollouts", inputs)
    monkeypatch.setattr(clipped, "collate_rollouts", inputs)

    def make(kind: type, outputs: Tensor) -> Any:
        worker = kind.__new__(kind)
        worker.engine = GivenEngine(outputs)
        worker.context = SimpleNamespace(
            encoder=None, token_budget=1000, shared_width=0, rank=Rank(0, 1)
        )
        return worker

    return make


FORMS = pytest.mark.parametrize(
    ("form", "weight"), [("token_mean", 1 / 5), ("sequence_mean", 1 / 2)]
)  # of the first response's mean


@FORMS
def test_a_critic_is_held_near_its_old_values(
    form: str, weight: float, given: Callable[[type, Tensor], Any]
) -> None:
    worker = given(CriticWorker, tokens(2.0, 1.0))
    batch = ValueBatch(rollouts(), tokens(0.0, 1.0), tokens(3.0, 1.0), 0)
    worker.update(batch, replace(PPO, loss_form=form))
    # 0.5 (2 - 3)^2 unclipped, but 0.5 (0 + 0.5 - 3)^2 clipped; the second response is right.
    assert worker.engine.losses == pytest.approx([3.125 * weight])


@FORMS
def test_a_policy_is_clipped_and_pays_for_the_divergence_on_every_token(
    form: str, weight: float, given: Callable[[type, Tensor], Any]
) -> None:
    worker = given(PolicyWorker, tokens(-1.0, -1.0))
    ratio = torch.log(torch.tensor(2.0))
    old = tokens(-1.0, -1.0) - ratio
    batch = PolicyBatch(replace(rollouts(), temperature=0.7), old, tokens(1.0, 0.0), 0)
    worker.update(batch, replace(PPO, loss_form=form))
    # The ratio is 2, cut at 1.5; the second response has no advantage.
    assert worker.engine.losses == pytest.approx([-1.5 * weight])
    assert worker.engine.temperatures == [0.7]
    worker.update(replace(batch, reference_logprobs=old, kl_beta=0.5), replace(PPO, loss_form=form))
    divergence = 0.5 - 1 + float(ratio)  # k3 of half the probability, nats
    assert worker.engine.losses[1] == pytest.approx(-1.5 * weight + 0.5 * divergence)


def scored_pairs(loss: ScorerLoss) -> tuple[list[float], list[bool]]:
    """Losses of two pairs whose labels of help and harm differ, and whether they rank right."""
    one = PreferencePair(
        id="0", question="?", image=None, category="none", severity=1, responses=("a", "b"),
        more_helpful=1, safer=0, safe=(True, False), harmless_rates=(2, -3), helpful_rates=(0, 0),
    )  # fmt: skip
    other = replace(one, more_helpful=1, safer=1, harmless_rates=(-1, 0))
    trainer = ScorerTrainer.__new__(ScorerTrainer)
    trainer.context = SimpleNamespace(  # type: ignore[assignment]
        encoder=SimpleNamespace(records=Rows([one, other]))
    )
    losses, right = trainer._pair_losses([0, 1], torch.tensor([[1.0, 3.0], [0.5, 2.0]]), loss)
    return losses.tolist(), right.tolist()


def ls(value: float) -> float:
    return float(logsigmoid(torch.tensor(value)))


def test_a_reward_model_learns_what_helps() -> None:
    losses, right = scored_pairs(ScorerLoss("reward", regularization=0.1))
    squares = [(9 + 1) / 2, (4 + 0.25) / 2]
    assert losses == pytest.approx([-ls(2.0) + 0.1 * squares[0], -ls(1.5) + 0.1 * squares[1]])
    assert right == [True, True]


@pytest.mark.parametrize(
    ("mode", "signs"),  # of (higher, lower) in both pairs
    [("graded", [(3, -2), (1, 0)]), ("sign", [(1, -1), (1, -1)])],
)
def test_a_cost_model_learns_what_is_less_safe_and_the_sign_of_each(
    mode: str, signs: list[tuple[float, float]]
) -> None:
    loss = ScorerLoss("cost", regularization=0.0, sign_scale=0.5, label_mode=mode)
    losses, right = scored_pairs(loss)
    ends = [(3.0, 1.0), (0.5, 2.0)]  # of the less safe answer, of the safer one
    wanted = [
        -ls(high - low) - 0.5 * (ls(s_high * high) + ls(s_low * low))
        for (high, low), (s_high, s_low) in zip(ends, signs, strict=True)
    ]
    assert losses == pytest.approx(wanted)
    assert right == [True, False]

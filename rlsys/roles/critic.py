"""The reward and cost critics: value models initialised from the reward and the cost model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlsys.algorithms.masked import aggregate
from rlsys.algorithms.value_loss import clipped_value_loss
from rlsys.batch import Rollouts, ValueBatch, step_rows
from rlsys.config.updates import PpoConfig
from rlsys.models.shared import Base
from rlsys.roles.factory import RowSource, WorkerFactory
from rlsys.roles.forward import collate_rollouts, forward_rollouts, merge_rows
from rlsys.roles.role import Role
from rlsys.roles.scorer import TrainedHead, trained_scorer
from rlsys.roles.trained import Stats, TrainedHandle, Training, merge_stats
from rlsys.runtime.group import RankGroup
from rlsys.runtime.pending import Metrics, Pending

REWARD_CRITIC = Role("reward_critic", "values of the reward, started from the reward model")
COST_CRITIC = Role("cost_critic", "values of the cost, started from the cost model")


class Critic(Protocol):
    """A value model of the reward or of the cost, as a driver sees it."""

    def values(self, rollouts: Rollouts) -> Pending[Tensor]:
        """[B, T], the value of the state before each response token."""
        ...

    def update(self, batch: ValueBatch) -> Pending[Metrics]:
        """PPO epochs over the batch."""
        ...


@dataclass(frozen=True)
class CriticSpec:
    """model: folder of the scorer it is initialised from; base: as of ``ScorerSpec``."""

    model: str
    data: RowSource
    dtype: str
    training: Training
    base: Base | None = None

    def build(self, factory: WorkerFactory) -> CriticWorker:
        token_budget = self.training.train.micro_batch_tokens
        context = factory.context(self.model, self.data, token_budget)
        base = self.base if self.training.train.shares_base else None
        module = trained_scorer(factory, self.model, self.dtype, base)
        return CriticWorker(module.to(factory.device), context, self.training)


class CriticWorker(TrainedHead):
    """Values of the states before each response token, trained by the clipped value loss."""

    def values(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        """This rank's rows and their values [.., T]."""
        return forward_rollouts(
            self.context,
            rollouts,
            lambda batch: self.engine.forward(batch.inputs, batch.logit_positions),
        )

    def update(self, batch: ValueBatch, ppo: PpoConfig) -> Stats:
        """PPO epochs over the batch."""
        rollouts = batch.rollouts
        lengths = rollouts.tokens
        steps = step_rows(len(rollouts), ppo.minibatch, ppo.epochs, batch.shuffle_seed)
        stats = Stats()
        for rows in steps:
            tokens = int(rollouts.lengths[rows].sum())

            def micro_loss(
                micro: list[int], is_real: bool, rows: list[int] = rows, tokens: int = tokens
            ) -> tuple[Tensor, Metrics]:
                inputs = collate_rollouts(self.context.encoder, rollouts, micro)
                mask = rollouts.mask[micro] & is_real
                values, old, goal = (
                    each.masked_fill(~mask, 0.0)
                    for each in (
                        self.engine.forward(inputs.inputs, inputs.logit_positions),
                        batch.old_values[micro],
                        batch.returns[micro],
                    )
                )
                losses = clipped_value_loss(values, old, goal, clip=ppo.value_clip)
                loss = aggregate(
                    losses,
                    mask,
                    form=ppo.loss_form,
                    global_tokens=tokens,
                    global_sequences=len(rows),
                )
                return loss, {"loss": float(loss.detach()) / len(steps)}

            self.train_step(self.plan(rows, lengths), rows[0], micro_loss, stats)
        return stats


class CriticHandle(TrainedHandle[CriticSpec]):
    """Implements ``Critic``."""

    def __init__(self, group: RankGroup, role: Role, ppo: PpoConfig) -> None:
        super().__init__(group, role.name)
        self.ppo = ppo

    def values(self, rollouts: Rollouts) -> Pending[Tensor]:
        return self._all(CriticWorker.values, rollouts).map(merge_rows)

    def update(self, batch: ValueBatch) -> Pending[Metrics]:
        return self._all(CriticWorker.update, batch, self.ppo).map(merge_stats)

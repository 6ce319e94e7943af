"""The guard: one trunk, one head with three kinds of outputs (unsafe, severity, category)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rlsys.algorithms.moderation import moderation_loss
from rlsys.batch import Rollouts
from rlsys.data.collate import Collated, collate
from rlsys.data.rows import PreferencePair
from rlsys.guard.decision import Moderation, moderations
from rlsys.guard.labels import OUTPUTS, Label, labelled_answers
from rlsys.models.heads import build_scorer_module
from rlsys.roles.factory import RowSource, WorkerContext, WorkerFactory
from rlsys.roles.forward import answer_tokens, forward_answers, forward_rollouts, merge_rows
from rlsys.roles.role import Role
from rlsys.roles.scorer import TrainedHead
from rlsys.roles.trained import Stats, TrainedHandle, Training, merge_stats
from rlsys.runtime.group import RankGroup, RoleHandle
from rlsys.runtime.pending import Metrics, Pending

ROLE = Role("guard", "the moderation model, frozen or in training")


class Guard(Protocol):
    """A moderation model, as a driver sees it."""

    def moderate(self, rollouts: Rollouts) -> Pending[list[Moderation]]:
        """One moderation per row, read at the last response token."""
        ...


class PromptGuard(Guard, Protocol):
    """A guard that also moderates prompts before there is an answer."""

    def moderate_prompts(self, rows: Sequence[int], threshold: float) -> Pending[list[Moderation]]:
        """One moderation per dataset row, of its image and question alone. threshold: probability
        from which a prompt counts as unsafe.
        """
        ...


@dataclass(frozen=True)
class GuardSpec:
    """A trained guard. model: its folder; token_budget: padded tokens per forward pass."""

    model: str
    data: RowSource
    dtype: str
    token_budget: int

    def build(self, factory: WorkerFactory) -> GuardWorker:
        context = factory.context(self.model, self.data, self.token_budget)
        module = build_scorer_module(
            self.model, self.dtype, new_head=False, seed=0, outputs=OUTPUTS
        )
        return GuardWorker(context.frozen(module), context)


@dataclass(frozen=True)
class GuardTrainerSpec:
    """A new guard. model: folder of the policy whose trunk it is initialised from."""

    model: str
    data: RowSource
    dtype: str
    training: Training

    def build(self, factory: WorkerFactory) -> GuardTrainer:
        token_budget, seed = self.training.train.micro_batch_tokens, self.training.seed
        context = factory.context(self.model, self.data, token_budget)
        module = build_scorer_module(
            self.model, self.dtype, new_head=True, seed=seed, outputs=OUTPUTS
        )
        return GuardTrainer(module.to(factory.device), context, self.training)


Item = tuple[int, str, Label]
"""Dataset row, answer (empty: the prompt alone), labels."""


class GuardWorker:
    """A frozen guard."""

    def __init__(self, module: nn.Module, context: WorkerContext) -> None:
        self.module, self.context = module, context
        module.eval()  # DeepSpeed's returns nothing

    def moderate(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        """This rank's rows and their outputs [.., OUTPUTS], read at the last response token."""
        return forward_rollouts(self.context, rollouts, self._outputs)

    def moderate_prompts(self, rows: Sequence[int]) -> tuple[list[int], Tensor]:
        """This rank's indices into ``rows`` and the outputs for the prompts alone, encoded as in
        training: with an empty answer.
        """
        return forward_answers(self.context, rows, [""] * len(rows), self._outputs)

    def moderate_rows(self, rows: Sequence[int]) -> tuple[list[int], Tensor]:
        """This rank's indices into the items of these dataset rows (three each, in the order of
        ``labelled_answers``) and their outputs.
        """
        items = _items(self.context, rows)
        item_rows, texts = [row for row, *_ in items], [text for _, text, _ in items]
        return forward_answers(self.context, item_rows, texts, self._outputs)

    def _outputs(self, batch: Collated) -> Tensor:
        return self.module(batch.inputs, batch.last_positions).squeeze(1)


class GuardTrainer(TrainedHead):
    """Trains a guard on answers and on prompts alone."""

    def step(self, rows: Sequence[int]) -> Stats:
        """One optimiser step on the three items of each of these dataset rows."""
        items, encoder = _items(self.context, rows), self.context.encoder
        tokens = answer_tokens(encoder, [row for row, *_ in items], [t for _, t, _ in items])
        stats = Stats()

        def micro_loss(micro: list[int], is_real: bool) -> tuple[Tensor, Metrics]:
            chosen = [items[i] for i in micro]
            answers = [encoder.response(text) for _, text, _ in chosen]
            batch = collate(encoder, [row for row, *_ in chosen], None, answers)
            outputs = self.engine.forward(batch.inputs, batch.last_positions).squeeze(1)
            unsafe, severity, category = torch.tensor([label for *_, label in chosen]).T
            losses = moderation_loss(outputs, unsafe.bool(), severity, category)
            weight = float(is_real) / len(items)
            right = (outputs[:, 0] > 0) == unsafe.bool()
            return losses.sum() * weight, {
                "loss": float(losses.detach().sum()) * weight,
                "accuracy": float(right.sum()) * weight,
            }

        self.train_step(self.plan(range(len(items)), tokens), 0, micro_loss, stats)
        return stats


def _items(context: WorkerContext, rows: Sequence[int]) -> list[Item]:
    pairs = context.encoder.records.of_kind(rows, PreferencePair)
    return [
        (row, *item)
        for row, pair in zip(rows, pairs, strict=True)
        for item in labelled_answers(pair)
    ]


class GuardHandle(RoleHandle[GuardSpec]):
    """Implements ``PromptGuard``. threshold: probability from which an answer counts as unsafe."""

    def __init__(self, group: RankGroup, threshold: float = 0.5) -> None:
        super().__init__(group, ROLE.name)
        self.threshold = threshold

    def moderate(self, rollouts: Rollouts) -> Pending[list[Moderation]]:
        return self._all(GuardWorker.moderate, rollouts).map(self._decide)

    def moderate_prompts(self, rows: Sequence[int], threshold: float) -> Pending[list[Moderation]]:
        return self._all(GuardWorker.moderate_prompts, rows).map(
            lambda parts: moderations(merge_rows(parts), threshold=threshold)
        )

    def moderate_rows(self, rows: Sequence[int]) -> Pending[Tensor]:
        """[3 N, OUTPUTS] of the three items of each dataset row (``labelled_answers``)."""
        return self._all(GuardWorker.moderate_rows, rows).map(merge_rows)

    def _decide(self, parts: list[tuple[list[int], Tensor]]) -> list[Moderation]:
        return moderations(merge_rows(parts), threshold=self.threshold)


class GuardTrainerHandle(TrainedHandle[GuardTrainerSpec]):
    """A guard in training."""

    def __init__(self, group: RankGroup) -> None:
        super().__init__(group, ROLE.name)

    def step(self, rows: Sequence[int]) -> Pending[Metrics]:
        """One optimiser step on the items of these dataset rows."""
        return self._all(GuardTrainer.step, rows).map(merge_stats)

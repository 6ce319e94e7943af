"""Reward and cost models: a vision-language trunk with a scalar head, frozen and in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from rlsys.algorithms.scorer_losses import cost_loss, cost_signs, reward_loss
from rlsys.batch import Rollouts
from rlsys.config.schema import WHOLE
from rlsys.data.collate import Collated, collate
from rlsys.data.rows import PreferencePair, RankedPair, preferred
from rlsys.micro_batches import Tokens
from rlsys.models.adapters import (
    adapter_base,
    add_lora,
    add_saved_adapter,
    lora_scaling,
    merged,
    save_adapter,
)
from rlsys.models.heads import ScorerModule, build_scorer_module, freeze
from rlsys.models.load import save_head
from rlsys.models.shared import Base
from rlsys.roles.factory import RowSource, WorkerContext, WorkerFactory
from rlsys.roles.forward import forward_answers, forward_rollouts, merge_rows, planned
from rlsys.roles.role import Role
from rlsys.roles.trained import Stats, TrainedHandle, TrainedWorker, Training, merge_stats
from rlsys.runtime.group import RankGroup, RoleHandle
from rlsys.runtime.pending import Metrics, Pending

REWARD = Role("reward", "the reward model, frozen or in training")
COST = Role("cost", "the cost model, frozen or in training")


class Scorer(Protocol):
    """A reward or a cost model, as a driver sees it."""

    def score(self, rollouts: Rollouts) -> Pending[Tensor]:
        """[B], read at the last response token."""
        ...


@dataclass(frozen=True)
class ScorerSpec:
    """A trained scorer. model: its folder; token_budget: padded tokens per forward pass; frozen: as
    the key; base: a model that stays in memory whole (see ``trained_scorer``).
    """

    model: str
    data: RowSource
    dtype: str
    token_budget: int
    frozen: str = WHOLE
    base: Base | None = None

    def build(self, factory: WorkerFactory) -> ScorerWorker:
        context = factory.context(self.model, self.data, self.token_budget)
        base = self.base if self.frozen == WHOLE else None
        module = trained_scorer(factory, self.model, self.dtype, base)
        return ScorerWorker(context.frozen(module, self.frozen), context)


def trained_scorer(
    factory: WorkerFactory, model: str, dtype: str, base: Base | None
) -> ScorerModule:
    """The scorer of a folder. If it was trained as an adapter of ``base``, on the weights that all
    roles with this base have in common.
    """
    trunk = None
    if base is not None and adapter_base(model) == base.digest:
        trunk = factory.models.trunk(base.folder, dtype)
        add_saved_adapter(trunk, model)
    return build_scorer_module(model, dtype, new_head=False, seed=0, trunk=trunk)


@dataclass(frozen=True)
class ScorerTrainerSpec:
    """A new scorer. model: folder of the policy whose trunk it is initialised from; digest: of that
    policy, which adapters are saved with.
    """

    model: str
    data: RowSource
    dtype: str
    training: Training
    digest: str = ""

    def build(self, factory: WorkerFactory) -> ScorerTrainer:
        token_budget = self.training.train.micro_batch_tokens
        context = factory.context(self.model, self.data, token_budget)
        seed = self.training.seed
        module = build_scorer_module(self.model, self.dtype, new_head=True, seed=seed)
        return ScorerTrainer(module.to(factory.device), context, self.training, self.digest)


@dataclass(frozen=True)
class ScorerLoss:
    """signal: reward or cost; the other fields as the keys of these stages."""

    signal: str
    regularization: float
    sign_scale: float = 1.0
    label_mode: str = "graded"
    target: str = "more_helpful"


class PairScorer:
    """Scores both responses of a dataset row at the last token."""

    context: WorkerContext

    def _last_scores(self, batch: Collated) -> Tensor:
        """[B] scores at the last token."""
        raise NotImplementedError

    @torch.no_grad()
    def score_pairs(self, rows: Sequence[int]) -> tuple[list[int], Tensor]:
        """This rank's indices into ``rows`` and the end scores [.., 2] of their two responses."""
        mine: list[int] = []
        results: list[Tensor] = []
        for micro in planned(self.context, range(len(rows)), self._pair_tokens(rows)):
            scores = self._pair_scores([rows[i] for i in micro or [0]])
            if micro:
                mine += micro
                results.append(scores)
        return mine, torch.cat(results) if results else torch.empty(0)

    def _pair_tokens(self, rows: Sequence[int]) -> list[Tokens]:
        encoder = self.context.encoder
        pairs = encoder.records.of_kind(rows, RankedPair)
        return [
            Tokens(row, start, tuple(len(encoder.response(text)) for text in pair.responses))
            for row, start, pair in zip(rows, encoder.lengths(rows), pairs, strict=True)
        ]

    def _pair_scores(self, rows: Sequence[int]) -> Tensor:
        """Scores [N, 2] at the last token, both responses of a prompt in one batch."""
        encoder = self.context.encoder
        pairs = encoder.records.of_kind(rows, RankedPair)
        answers = [encoder.response(text) for pair in pairs for text in pair.responses]
        index = [row for row in rows for _ in range(2)]
        return self._last_scores(collate(encoder, index, None, answers)).reshape(len(rows), 2)


class ScorerWorker(PairScorer):
    """A frozen reward or cost model."""

    def __init__(self, module: nn.Module, context: WorkerContext) -> None:
        self.module, self.context = module, context
        module.eval()  # DeepSpeed's returns nothing

    def score(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        """This rank's rows and their scores, read at the last response token."""
        return forward_rollouts(self.context, rollouts, self._last_scores)

    def score_texts(self, rows: Sequence[int], texts: Sequence[str]) -> tuple[list[int], Tensor]:
        """This rank's indices into ``rows`` and the scores of ``texts`` as their answers."""
        return forward_answers(self.context, rows, texts, self._last_scores)

    def _last_scores(self, batch: Collated) -> Tensor:
        scores: Tensor = self.module(batch.inputs, batch.last_positions)
        return scores.squeeze(1)


class TrainedHead(TrainedWorker):
    """A trunk with a head, under a training engine. Beside adapters on the trunk the head trains
    in full.
    """

    def __init__(
        self, module: ScorerModule, context: WorkerContext, training: Training, base: str = ""
    ) -> None:
        """Args: base: digest of the model that the trunk is."""
        if training.train.lora_rank:
            add_lora(module.trunk, training.train, training.seed)
        elif training.train.freeze:
            freeze(module, training.train.freeze)
        super().__init__(module, context, training)
        self.module, self.base = module, base
        self._scaling = lora_scaling(module.trunk)

    def save_model(self, folder: Path) -> None:
        """The trunk as a transformers checkpoint, adapters merged, and the head beside it; the
        adapters alone too, if it is known what they belong to. Collective.
        """
        state = {n: t.clone() for n, t in self.engine.full_params()}
        if self.context.rank.rank == 0:
            head = state.pop("head.weight")
            named = [(name.removeprefix("trunk."), tensor) for name, tensor in state.items()]
            if self._scaling and self.base:
                save_adapter(folder, self.module.trunk, dict(named), self.base)
            trunk = dict(merged(named, self._scaling))
            self.module.trunk.save_pretrained(folder, state_dict=trunk)
            save_head(folder, head)
            self.context.encoder.processor.save_pretrained(folder)


class ScorerTrainer(TrainedHead, PairScorer):
    """Trains a reward model or a cost model on preference pairs with images."""

    def step(self, rows: Sequence[int], loss: ScorerLoss) -> Stats:
        """One optimiser step on the pairs of these dataset rows."""
        tokens = self._pair_tokens(rows)
        stats = Stats()

        def micro_loss(micro: list[int], is_real: bool) -> tuple[Tensor, Metrics]:
            scores = self._pair_scores([rows[i] for i in micro])
            losses, right = self._pair_losses([rows[i] for i in micro], scores, loss)
            weight = float(is_real) / len(rows)
            return losses.sum() * weight, {
                "loss": float(losses.detach().sum()) * weight,
                "accuracy": float(right.sum()) * weight,
            }

        self.train_step(self.plan(range(len(rows)), tokens), 0, micro_loss, stats)
        return stats

    def _pair_losses(
        self, rows: Sequence[int], scores: Tensor, loss: ScorerLoss
    ) -> tuple[Tensor, Tensor]:
        """Losses [N] and whether each pair is ranked correctly [N]."""
        read = self.context.encoder.records
        if loss.signal == REWARD.name:
            ranked = read.of_kind(rows, RankedPair)
            first = torch.tensor([[preferred(r, loss.target)] for r in ranked])
            better, worse = _ordered(scores, first)
            return reward_loss(better, worse, regularization=loss.regularization), better > worse
        records = read.of_kind(rows, PreferencePair)
        first = torch.tensor([[1 - r.safer] for r in records])
        higher, lower = _ordered(scores, first)
        rates = torch.tensor([r.harmless_rates for r in records])
        signs = cost_signs(rates, label_mode=loss.label_mode)
        sign_higher, sign_lower = _ordered(signs, first)
        losses = cost_loss(
            higher,
            lower,
            sign_higher,
            sign_lower,
            sign_scale=loss.sign_scale,
            regularization=loss.regularization,
        )
        return losses, higher > lower

    def _last_scores(self, batch: Collated) -> Tensor:
        return self.engine.forward(batch.inputs, batch.last_positions).squeeze(1)


def _ordered(pairs: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [N, 2] as (the one ``first`` [N, 1] points at, the other)."""
    return pairs.gather(1, first).squeeze(1), pairs.gather(1, 1 - first).squeeze(1)


class ScorerHandle(RoleHandle[ScorerSpec]):
    """Implements ``Scorer``."""

    def score(self, rollouts: Rollouts) -> Pending[Tensor]:
        return self._all(ScorerWorker.score, rollouts).map(merge_rows)

    def score_texts(self, rows: Sequence[int], texts: Sequence[str]) -> Pending[Tensor]:
        """[N], each text as an answer to the prompt of its dataset row."""
        return self._all(ScorerWorker.score_texts, rows, texts).map(merge_rows)

    def score_pairs(self, rows: Sequence[int]) -> Pending[Tensor]:
        """[N, 2] scores of both responses of each dataset row."""
        return self._all(ScorerWorker.score_pairs, rows).map(merge_rows)


class ScorerTrainerHandle(TrainedHandle[ScorerTrainerSpec]):
    """A scorer in training. ``loss.signal`` names its role."""

    def __init__(self, group: RankGroup, loss: ScorerLoss) -> None:
        super().__init__(group, loss.signal)
        self.loss = loss

    def step(self, rows: Sequence[int]) -> Pending[Metrics]:
        """One optimiser step on the pairs of these dataset rows."""
        return self._all(ScorerTrainer.step, rows, self.loss).map(merge_stats)

"""Reward, cost and critics: one scalar-headed model under several names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlsys.algorithms.masked import aggregate
from rlsys.algorithms.scorer_losses import cost_loss, cost_signs, reward_loss
from rlsys.algorithms.value_loss import clipped_value_loss
from rlsys.batch import Rollouts, TrainBatch, micro_batches, step_rows
from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.config.stages import PpoConfig, ScorerStage
from rlsys.data.collate import Collated, collate
from rlsys.data.rows import PreferencePair
from rlsys.engines.common import Seat, Stats, train_step
from rlsys.engines.forward import collate_rollouts, forward_answers, forward_rows
from rlsys.engines.train import Metrics, build_engine
from rlsys.models.heads import ScorerModule, freeze
from rlsys.models.load import save_head


class PairScorer:
    """Reads the end scores of both responses of a dataset row."""

    seat: Seat

    def _ends(self, batch: Collated) -> Tensor:
        """[B] scores at the last token."""
        raise NotImplementedError

    @torch.no_grad()
    def score_pairs(self, rows: Sequence[int]) -> tuple[list[int], Tensor]:
        """This rank's places in ``rows`` and the end scores [.., 2] of their two responses."""
        mine: list[int] = []
        results: list[Tensor] = []
        for micro in self._plan(range(len(rows)), self._pair_tokens(rows)):
            scores = self._pair_scores([rows[i] for i in micro or [0]])
            if micro:
                mine += micro
                results.append(scores)
        return mine, torch.cat(results) if results else torch.empty(0)

    def _pair_tokens(self, rows: Sequence[int]) -> list[int]:
        """Tokens a pair takes in a batch: twice its longer side."""
        encoder = self.seat.encoder
        counts = []
        pairs = encoder.records.of_kind(rows, PreferencePair)
        for pair, length in zip(pairs, encoder.lengths(rows), strict=True):
            answers = [len(encoder.response(r)) for r in pair.responses]
            counts.append(2 * (length + max(answers)))
        return counts

    def _pair_scores(self, rows: Sequence[int]) -> Tensor:
        """End scores [N, 2], both responses of a prompt in one batch."""
        encoder = self.seat.encoder
        pairs = encoder.records.of_kind(rows, PreferencePair)
        answers = [encoder.response(text) for pair in pairs for text in pair.responses]
        index = [row for row in rows for _ in range(2)]
        return self._ends(collate(encoder, index, None, answers)).reshape(len(rows), 2)

    def _plan(self, rows: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
        rank = self.seat.rank
        return micro_batches(rows, counts, budget=self.seat.budget, world=rank.world)[rank.rank]


class ScorerWorker(PairScorer):
    """A frozen reward or cost model."""

    def __init__(self, module: ScorerModule, seat: Seat) -> None:
        self.module, self.seat = module.eval(), seat

    def score(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        """This rank's rows and their scores, read at the last response token."""
        return forward_rows(self.seat, rollouts, self._ends)

    def score_texts(self, rows: Sequence[int], texts: Sequence[str]) -> tuple[list[int], Tensor]:
        """This rank's places in ``rows`` and the scores of ``texts`` as their answers."""
        return forward_answers(self.seat, rows, texts, self._ends)

    def _ends(self, batch: Collated) -> Tensor:
        return self.module(batch.inputs, batch.ends).squeeze(1)


class TrainedScorer(PairScorer):
    """A trunk with a head, under an engine."""

    def __init__(
        self,
        module: ScorerModule,
        seat: Seat,
        train: TrainConfig,
        optim: OptimConfig,
        total_steps: int,
    ) -> None:
        if train.freeze:
            freeze(module, train.freeze)
        self.module, self.seat = module, seat
        self.engine = build_engine(module, train, optim, total_steps, seat.rank)
        self.engine.module.eval()

    def _ends(self, batch: Collated) -> Tensor:
        return self.engine.forward(batch.inputs, batch.ends).squeeze(1)

    def save_model(self, folder: Path) -> None:
        """The trunk as a transformers checkpoint and the head beside it. Collective."""
        state = {n: t.clone() for n, t in self.engine.full_params(trained_only=False)}
        if self.seat.rank.rank == 0:
            trunk = {n.removeprefix("trunk."): t for n, t in state.items() if n != "head.weight"}
            self.module.trunk.save_pretrained(folder, state_dict=trunk)
            save_head(folder, state["head.weight"])
            self.seat.encoder.processor.save_pretrained(folder)


class CriticWorker(TrainedScorer):
    """Values of the states before each response token, trained by the clipped value loss."""

    def values(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        return forward_rows(
            self.seat, rollouts, lambda batch: self.engine.forward(batch.inputs, batch.states)
        )

    def update(self, batch: TrainBatch, ppo: PpoConfig, signal: str) -> Stats:
        """PPO epochs; ``signal`` is reward or cost."""
        rollouts = batch.rollouts
        old_values: Tensor = getattr(batch, f"old_{signal}_values")
        returns: Tensor = getattr(batch, f"{signal}_returns")
        counts = rollouts.token_counts
        steps = step_rows(len(rollouts), ppo.minibatch, ppo.epochs, batch.shuffle_seed)
        stats = Stats()
        for rows in steps:
            tokens = int(rollouts.lengths[rows].sum())

            def share(
                micro: list[int], real: bool, rows: list[int] = rows, tokens: int = tokens
            ) -> tuple[Tensor, Metrics]:
                inputs = collate_rollouts(self.seat.encoder, rollouts, micro)
                mask = rollouts.mask[micro] & real
                values, old, goal = (
                    each.masked_fill(~mask, 0.0)
                    for each in (
                        self.engine.forward(inputs.inputs, inputs.states),
                        old_values[micro],
                        returns[micro],
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

            train_step(self.engine, self._plan(rows, counts), rows[0], share, stats)
        return stats


class ScorerTrainer(TrainedScorer):
    """Learns a reward model or a cost model from preference pairs, pixels included."""

    def step(self, rows: Sequence[int], stage: ScorerStage) -> Stats:
        """One optimiser step on the pairs of these dataset rows."""
        counts = self._pair_tokens(rows)
        stats = Stats()

        def share(micro: list[int], real: bool) -> tuple[Tensor, Metrics]:
            scores = self._pair_scores([rows[i] for i in micro])
            losses, right = self._pair_losses([rows[i] for i in micro], scores, stage)
            weight = float(real) / len(rows)
            return losses.sum() * weight, {
                "loss": float(losses.detach().sum()) * weight,
                "accuracy": float(right.sum()) * weight,
            }

        train_step(self.engine, self._plan(range(len(rows)), counts), 0, share, stats)
        return stats

    def _pair_losses(
        self, rows: Sequence[int], scores: Tensor, stage: ScorerStage
    ) -> tuple[Tensor, Tensor]:
        """Losses [N] and whether each pair is ranked right [N]."""
        records = self.seat.encoder.records.of_kind(rows, PreferencePair)
        if stage.kind == "reward":
            first = torch.tensor([[r.more_helpful] for r in records])
            better, worse = _ordered(scores, first)
            return reward_loss(better, worse, regularization=stage.regularization), better > worse
        first = torch.tensor([[1 - r.safer] for r in records])
        higher, lower = _ordered(scores, first)
        rates = torch.tensor([r.harmless_rates for r in records])
        signs = cost_signs(rates, label_mode=stage.label_mode)
        sign_higher, sign_lower = _ordered(signs, first)
        losses = cost_loss(
            higher,
            lower,
            sign_higher,
            sign_lower,
            sign_scale=stage.sign_scale,
            regularization=stage.regularization,
        )
        return losses, higher > lower


def _ordered(pairs: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [N, 2] as (the one ``first`` [N, 1] points at, the other)."""
    return pairs.gather(1, first).squeeze(1), pairs.gather(1, 1 - first).squeeze(1)

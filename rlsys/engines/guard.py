"""The moderation model: one trunk, one head with three kinds of outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlsys.algorithms.moderation import moderation_loss
from rlsys.batch import Rollouts
from rlsys.data.collate import Collated, collate
from rlsys.data.rows import PreferencePair
from rlsys.engines.common import Seat, Stats, train_step
from rlsys.engines.forward import answer_counts, forward_answers, forward_rows
from rlsys.engines.scorer import TrainedScorer
from rlsys.engines.train import Metrics
from rlsys.guard.labels import Label, labelled_answers
from rlsys.models.heads import ScorerModule

Item = tuple[int, str, Label]
"""Dataset row, answer (empty: the prompt alone), labels."""


class GuardWorker:
    """A frozen guard."""

    def __init__(self, module: ScorerModule, seat: Seat) -> None:
        self.module, self.seat = module.eval(), seat

    def moderate(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        """This rank's rows and their outputs [.., OUTPUTS], read at the last response token."""
        return forward_rows(self.seat, rollouts, self._outputs)

    def moderate_rows(self, rows: Sequence[int]) -> tuple[list[int], Tensor]:
        """This rank's places among the items of these dataset rows (three each, in the order of
        ``labelled_answers``) and their outputs.
        """
        items = _items(self.seat, rows)
        places, texts = [row for row, *_ in items], [text for _, text, _ in items]
        return forward_answers(self.seat, places, texts, self._outputs)

    def _outputs(self, batch: Collated) -> Tensor:
        return self.module(batch.inputs, batch.ends).squeeze(1)


class GuardTrainer(TrainedScorer):
    """Learns to moderate answers and bare prompts."""

    def step(self, rows: Sequence[int]) -> Stats:
        """One optimiser step on the three items of each of these dataset rows."""
        items, encoder = _items(self.seat, rows), self.seat.encoder
        counts = answer_counts(encoder, [row for row, *_ in items], [t for _, t, _ in items])
        stats = Stats()

        def share(micro: list[int], real: bool) -> tuple[Tensor, Metrics]:
            chosen = [items[i] for i in micro]
            answers = [encoder.response(text) for _, text, _ in chosen]
            batch = collate(encoder, [row for row, *_ in chosen], None, answers)
            outputs = self.engine.forward(batch.inputs, batch.ends).squeeze(1)
            unsafe, severity, category = torch.tensor([label for *_, label in chosen]).T
            losses = moderation_loss(outputs, unsafe.bool(), severity, category)
            weight = float(real) / len(items)
            right = (outputs[:, 0] > 0) == unsafe.bool()
            return losses.sum() * weight, {
                "loss": float(losses.detach().sum()) * weight,
                "accuracy": float(right.sum()) * weight,
            }

        train_step(self.engine, self._plan(range(len(items)), counts), 0, share, stats)
        return stats


def _items(seat: Seat, rows: Sequence[int]) -> list[Item]:
    pairs = seat.encoder.records.of_kind(rows, PreferencePair)
    return [
        (row, *item)
        for row, pair in zip(rows, pairs, strict=True)
        for item in labelled_answers(pair)
    ]

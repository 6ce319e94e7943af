"""Supervised fine-tuning: the loop, for any learner behind the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rlsys.batch import PromptCursor
from rlsys.roles import Metrics, Pending


class Learner(Protocol):
    """Takes optimiser steps on rows of the training split."""

    def step(self, rows: list[int]) -> Pending[Metrics]: ...


Report = Callable[[int, Metrics], None]


def train(
    learner: Learner,
    cursor: PromptCursor,
    *,
    steps: int,
    batch: int,
    timeout: float,
    report: Report,
) -> None:
    """``steps`` steps of ``batch`` rows. Also the loop of reward and cost models, whose rows are
    preference pairs. ``report(step, metrics)`` is called after every step, from 1.
    """
    for step in range(1, steps + 1):
        metrics = learner.step(cursor.next(min(batch, cursor.count))).result(timeout)
        report(step, metrics)

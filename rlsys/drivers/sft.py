"""Supervised fine-tuning, and the training of scorers and guards: steps on batches of rows."""

from __future__ import annotations

from collections.abc import Callable

from rlsys.batch import PromptCursor
from rlsys.runtime.pending import Metrics, Pending

Step = Callable[[list[int]], Pending[Metrics]]
"""One optimiser step on these rows."""

Report = Callable[[int, Metrics], None]


def train(
    step: Step,
    cursor: PromptCursor,
    *,
    steps: int,
    batch: int,
    timeout: float,
    report: Report,
    start: int = 0,
) -> None:
    """Steps ``start + 1`` to ``steps``, of ``batch`` rows each (all rows where there are fewer).

    ``report(number, metrics)`` is called after every step.
    """
    for number in range(start + 1, steps + 1):
        metrics = step(cursor.next(min(batch, cursor.count))).result(timeout)
        report(number, metrics)

"""Forward passes over rollouts, binned under a token budget and shared among ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlsys.batch import Rollouts, micro_batches
from rlsys.data.collate import Collated, collate
from rlsys.data.encoder import PromptEncoder
from rlsys.engines.common import Seat


def collate_rollouts(encoder: PromptEncoder, rollouts: Rollouts, rows: list[int]) -> Collated:
    """The chosen rows with T columns; prompts are checked against the engine's expansion."""
    return collate(
        encoder,
        rollouts.prompt_index[rows].tolist(),
        [rollouts.prompt_ids[r] for r in rows],
        [rollouts.response_ids[r, : rollouts.lengths[r]] for r in rows],
        width=rollouts.response_ids.shape[1],
    )


@torch.no_grad()
def forward_rows(
    seat: Seat, rollouts: Rollouts, run: Callable[[Collated], Tensor]
) -> tuple[list[int], Tensor]:
    """This rank's rows of a per-row result.

    Every rank makes the same number of calls, as sharded forward passes are collective.
    Returns: row numbers and their results, in the same order.
    """
    counts, world = rollouts.token_counts, seat.rank.world
    plan = micro_batches(range(len(rollouts)), counts, budget=seat.budget, world=world)
    rows: list[int] = []
    results: list[Tensor] = []
    for micro in plan[seat.rank.rank]:
        result = run(collate_rollouts(seat.encoder, rollouts, micro or [0]))
        if micro:
            rows += micro
            results.append(result)
    if not results:
        return [], torch.empty(0)
    return rows, torch.cat(results)


@torch.no_grad()
def forward_answers(
    seat: Seat, rows: Sequence[int], texts: Sequence[str], run: Callable[[Collated], Tensor]
) -> tuple[list[int], Tensor]:
    """This rank's places in ``rows`` and the results for ``texts`` as answers to their prompts.

    Every rank makes the same number of calls.
    """
    counts = answer_counts(seat.encoder, rows, texts)
    plan = micro_batches(range(len(rows)), counts, budget=seat.budget, world=seat.rank.world)
    mine: list[int] = []
    results: list[Tensor] = []
    for micro in plan[seat.rank.rank]:
        chosen = micro or [0]
        answers = [seat.encoder.response(texts[i]) for i in chosen]
        result = run(collate(seat.encoder, [rows[i] for i in chosen], None, answers))
        if micro:
            mine += micro
            results.append(result)
    return mine, torch.cat(results) if results else torch.empty(0)


def answer_counts(encoder: PromptEncoder, rows: Sequence[int], texts: Sequence[str]) -> list[int]:
    """Prompt plus response tokens."""
    return [
        length + len(encoder.response(text))
        for length, text in zip(encoder.lengths(rows), texts, strict=True)
    ]


def merge_rows(parts: list[tuple[list[int], Tensor]]) -> Tensor:
    """The ranks' rows put back in order."""
    rows = [row for part, _ in parts for row in part]
    values = torch.cat([values for part, values in parts if part])
    merged = torch.empty_like(values)
    merged[torch.tensor(rows)] = values
    return merged

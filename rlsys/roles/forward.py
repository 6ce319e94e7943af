"""Forward passes over rollouts, binned under a token budget and shared among ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlsys.batch import Rollouts
from rlsys.data.collate import Collated, collate
from rlsys.data.encoder import PromptEncoder
from rlsys.micro_batches import Tokens, micro_batches
from rlsys.roles.factory import WorkerContext


def planned(
    context: WorkerContext, rows: Sequence[int], tokens: Sequence[Tokens]
) -> list[list[int]]:
    """This rank's micro-batches. Args: tokens: by row."""
    rank, limit, width = context.rank, context.token_budget, context.shared_width
    plan = micro_batches(rows, tokens, token_budget=limit, world=rank.world, width=width)
    return plan[rank.rank]


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
def forward_rollouts(
    context: WorkerContext, rollouts: Rollouts, run: Callable[[Collated], Tensor]
) -> tuple[list[int], Tensor]:
    """Run a forward pass over this rank's rows.

    Every rank makes the same number of calls, as sharded forward passes are collective.
    Returns: row numbers and their results, in the same order.
    """
    rows: list[int] = []
    results: list[Tensor] = []
    for micro in planned(context, range(len(rollouts)), rollouts.tokens):
        result = run(collate_rollouts(context.encoder, rollouts, micro or [0]))
        if micro:
            rows += micro
            results.append(result)
    if not results:
        return [], torch.empty(0)
    return rows, torch.cat(results)


@torch.no_grad()
def forward_answers(
    context: WorkerContext,
    rows: Sequence[int],
    texts: Sequence[str],
    run: Callable[[Collated], Tensor],
) -> tuple[list[int], Tensor]:
    """This rank's indices into ``rows`` and the results for ``texts`` as answers to their prompts.

    Every rank makes the same number of calls.
    """
    tokens = answer_tokens(context.encoder, rows, texts)
    mine: list[int] = []
    results: list[Tensor] = []
    for micro in planned(context, range(len(rows)), tokens):
        chosen = micro or [0]
        answers = [context.encoder.response(texts[i]) for i in chosen]
        result = run(collate(context.encoder, [rows[i] for i in chosen], None, answers))
        if micro:
            mine += micro
            results.append(result)
    return mine, torch.cat(results) if results else torch.empty(0)


def answer_tokens(
    encoder: PromptEncoder, rows: Sequence[int], texts: Sequence[str]
) -> list[Tokens]:
    """Of each text as an answer to the prompt of its dataset row."""
    return [
        Tokens(row, length, (len(encoder.response(text)),))
        for row, length, text in zip(rows, encoder.lengths(rows), texts, strict=True)
    ]


def merge_rows(parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Per-rank results merged in row order."""
    rows = [row for part, _ in parts for row in part]
    values = torch.cat([values for part, values in parts if part])
    merged = torch.empty_like(values)
    merged[torch.tensor(rows)] = values
    return merged

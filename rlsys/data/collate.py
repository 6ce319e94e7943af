"""Collates prompts and responses of different lengths into one right-padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlsys.batch import PreferencePairs
from rlsys.data.encoder import PromptEncoder, response_ids
from rlsys.data.rows import RankedPair, Rows, preferred
from rlsys.errors import DataError
from rlsys.models.heads import NO_TOKEN


@dataclass(frozen=True)
class Collated:
    """Inputs of a VLM (see ``rlsys.models.heads.run_trunk``) with response positions and labels.

    logit_positions [B, T]: position whose output predicts response token t, repeating the last one
    beyond a row's length; labels [B, T]: response tokens, NO_TOKEN beyond; last_positions [B, 1]:
    position of the last response token.
    """

    inputs: dict[str, Any]
    logit_positions: Tensor
    labels: Tensor
    last_positions: Tensor


def labelled_pairs(
    records: Rows[RankedPair], rows: Sequence[int], target: str, tokenizer: Any
) -> PreferencePairs:
    """Both answers of these rows; ``target`` (more_helpful or safer) names the chosen one."""
    chosen, rejected = [], []
    for row in rows:
        record = records[row]
        better = preferred(record, target)
        chosen.append(response_ids(tokenizer, record.responses[better]))
        rejected.append(response_ids(tokenizer, record.responses[1 - better]))
    return PreferencePairs(torch.tensor(rows), chosen, rejected)


def collate(
    encoder: PromptEncoder,
    prompt_index: Sequence[int],
    prompt_ids: Sequence[Tensor] | None,
    responses: Sequence[Tensor],
    width: int | None = None,
) -> Collated:
    """Args: prompt_ids: the rollout engine's expanded ids, compared with the encoder's (None: not
    compared); responses: 1-d, at least one token each; width: T, default the longest response.
    Raises: DataError when prompt ids differ or a response is empty.
    """
    prompts = encoder.prompts(prompt_index)
    if prompt_ids is not None:
        for index, prompt, sampled in zip(prompt_index, prompts, prompt_ids, strict=True):
            if not torch.equal(prompt.expanded, sampled):
                raise DataError(
                    f"row {encoder.records[index].id}: the engine expanded the prompt to "
                    f"{len(sampled)} tokens, the trainer to {len(prompt.expanded)}, or to other ids"
                )
    starts = torch.tensor([len(p.expanded) for p in prompts])
    counts = torch.tensor([len(r) for r in responses])
    if bool((counts < 1).any()):
        raise DataError(
            f"row {encoder.records[prompt_index[int(counts.argmin())]].id}: empty response"
        )
    length = int((starts + counts).max())
    width = int(counts.max()) if width is None else width
    ids = torch.full((len(prompts), length), encoder.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(prompts), width), NO_TOKEN)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        filled = torch.cat([prompt.expanded, response])
        ids[row, : len(filled)] = filled
        mask[row, : len(filled)] = 1
        labels[row, : len(response)] = response
    images = {i: p.pixels for i, p in zip(prompt_index, prompts, strict=True) if p.pixels}
    image_number = {index: number for number, index in enumerate(images)}
    steps = torch.arange(width)[None, :].minimum(counts[:, None] - 1)
    return Collated(
        inputs={
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == encoder.image_token_id).int(),
            "pixels": list(images.values()) or [encoder.blank()],
            "prompt": torch.tensor(prompt_index),
            "prompt_tokens": starts,
            "image_index": torch.tensor([image_number.get(i, -1) for i in prompt_index]),
        },
        logit_positions=starts[:, None] - 1 + steps,
        labels=labels,
        last_positions=(starts + counts - 1)[:, None],
    )

"""Packed rows: a prompt once, then its answers, each of which attends to the prompt and itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rlsys.micro_batches import Tokens, packed_rows
from rlsys.models.families.registry import family_of

# Language models that take a mask and positions as they are given to them.
_GIVEN = (
    "llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text",
    "gemma3_text",
)  # fmt: skip
_KINDS = {"full_attention", "sliding_attention"}


def shared_width(config: Any, device: str) -> int:
    """Hidden size of a model whose rows can share a prompt on this kind of device; 0 for one whose
    rows cannot, which runs the plain form. Args: config: of transformers.
    """
    text = config.get_text_config()
    able = (
        family_of(config).shares_prefixes(device)
        and text.model_type in _GIVEN
        and set(getattr(text, "layer_types", None) or ()) <= _KINDS
        and text._attn_implementation in (None, "sdpa")
        and not text.attention_dropout  # it would be drawn once for several rows
    )
    return int(text.hidden_size) if able else 0


@dataclass(frozen=True)
class Packing:
    """Where the tokens of plain rows [B, L] are in packed rows [G, N].

    source [G, N]: plain row and position of each packed token, as row * L + position; position
    [G, N]: its position in the plain row; part [G, N]: 0 in the prompt, n in the n-th answer, -1 in
    the padding; longest [G]: its longest plain row; start, shift, row [B]: tokens of a row's
    prompt, tokens of other answers between that and its own, and its packed row.
    """

    source: Tensor
    position: Tensor
    part: Tensor
    longest: Tensor
    start: Tensor
    shift: Tensor
    row: Tensor

    def mask(self, window: int | None = None) -> Tensor:
        """[G, 1, N, N] bool, True where a token attends. Args: window: most tokens back, itself
        counted in, None for any number.
        """
        order = torch.arange(self.part.shape[1], device=self.part.device)
        before = order[:, None] >= order
        own = self.part[:, :, None] == self.part[:, None, :]
        seen = before & (own | (self.part == 0)[:, None, :])
        if window is not None:
            seen &= self.position[:, :, None] - self.position[:, None, :] < window
        return (seen | (order[:, None] == order))[:, None]  # padding: something to attend to

    def masks(self, config: Any) -> Tensor | dict[str, Tensor]:
        """What a model of this configuration takes as its mask, by kind of layer if it has two."""
        text = config.get_text_config()
        window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
        if kinds and "sliding_attention" in kinds:
            return {"full_attention": self.mask(), "sliding_attention": self.mask(window)}
        return self.mask(None if kinds else window)

    def flat_indices(self, positions: Tensor) -> Tensor:
        """[B, T] positions in plain rows -> indices into flattened packed rows."""
        answer = positions >= self.start[:, None]
        return self.row[:, None] * self.part.shape[1] + positions + answer * self.shift[:, None]

    def to(self, device: Any) -> Packing:
        return Packing(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})


def pack(
    prompts: Sequence[int], starts: Sequence[int], counts: Sequence[int], width: int
) -> Packing | None:
    """How rows are packed, None where that saves nothing.

    Args, by row: prompts: number of its prompt; starts, counts: tokens of prompt and answer. width:
    of ``shared_width``.
    """
    given = zip(prompts, starts, counts, strict=True)
    tokens = [Tokens(prompt, start, (count,)) for prompt, start, count in given]
    packed = packed_rows(tokens, width)
    if len(packed) == len(tokens):
        return None
    length = max(start + count for start, count in zip(starts, counts, strict=True))
    row, shift = torch.zeros(2, len(tokens), dtype=torch.long)
    lines = []
    for number, rows in enumerate(packed):
        start, done = starts[rows[0]], 0
        spans = [_span(rows[0] * length, 0, start, 0)]
        for part, each in enumerate(rows, 1):
            spans.append(_span(each * length, start, counts[each], part))
            row[each], shift[each] = number, done
            done += counts[each]
        lines.append(torch.cat(spans, 1))
    width = max(line.shape[1] for line in lines)
    source, position, part = torch.stack([_fill(line, width) for line in lines], 1)
    longest = torch.tensor([max(rows, key=counts.__getitem__) for rows in packed])
    return Packing(source, position, part, longest, torch.tensor(starts), shift, row)


def _span(offset: int, first: int, count: int, part: int) -> Tensor:
    """[3, count]: source, position and part."""
    steps = torch.arange(first, first + count)
    return torch.stack([offset + steps, steps, torch.full_like(steps, part)])


def _fill(line: Tensor, length: int) -> Tensor:
    """Padded with its last token, which is no placeholder of an image."""
    behind = line[:, -1:].expand(-1, length - line.shape[1]).clone()
    behind[2] = -1
    return torch.cat([line, behind], 1)

"""The one owner of image placeholders: prompts to token ids and pixels, once per prompt."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlsys.data.records import Record, Records
from rlsys.errors import DataError

_Key = tuple[int, str]
"""Dataset row and note."""

# Features of a prompt that are not per-token: what the vision tower reads.
_TOKEN_KEYS = {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}


@dataclass(frozen=True)
class EncodedPrompt:
    """expanded [P] holds one id per visual token, collapsed one placeholder per image."""

    expanded: Tensor
    collapsed: list[int]
    pixels: dict[str, Tensor]


class PromptEncoder:
    """Renders the chat template, expands placeholders and processes pixels; keeps a bounded cache.

    Args: processor of the model; records of one split; max_prompt_tokens after expansion.
    """

    CACHE_BYTES = 1 << 30

    def __init__(self, processor: Any, records: Records, max_prompt_tokens: int) -> None:
        self.processor, self.records = processor, records
        self.tokenizer = processor.tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.image_token_id: int = self.tokenizer.convert_tokens_to_ids(processor.image_token)
        self._cache: OrderedDict[_Key, EncodedPrompt] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # engines encode from several threads

    def prompts(
        self, indices: Sequence[int], notes: Sequence[str] | None = None
    ) -> list[EncodedPrompt]:
        """The encoded prompts of these dataset rows; new ones are processed in one batch.

        Args: notes: put after each question (default: none).
        Raises: DataError for an over-long prompt or text that imitates a special token.
        """
        with self._lock:
            return self._prompts(list(zip(indices, notes or [""] * len(indices), strict=True)))

    def _prompts(self, keys: list[_Key]) -> list[EncodedPrompt]:
        missing = sorted(set(keys) - self._cache.keys())
        fresh = dict(zip(missing, self._encode(missing), strict=True)) if missing else {}
        found = [fresh.get(key) or self._cache[key] for key in keys]
        for key, prompt in fresh.items():
            self._remember(key, prompt)
        return found

    def render(self, record: Record, note: str = "") -> str:
        """The conversation as text, with one placeholder for the image."""
        text = f"{record.question} {note}" if note else record.question
        forged = forged_token(text, self.tokenizer)
        if forged:
            raise DataError(f"row {record.id}: the question contains the special token {forged!r}")
        return self._conversation(text, with_image=True)

    def instruct(self, text: str, row: int | None) -> tuple[list[int], int]:
        """Any instruction about a dataset row's image, or about none.

        Returns: ids with one placeholder for the image, and their number once it is expanded.
        Raises: DataError for text that spells a special token.
        """
        forged = forged_token(text, self.tokenizer)
        if forged:
            raise DataError(f"an instruction contains the special token {forged!r}")
        rendered = self._conversation(text, with_image=row is not None)
        ids = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if row is None:
            return list(ids), len(ids)
        (prompt,) = self.prompts([row])
        return list(ids), len(ids) + len(prompt.expanded) - len(prompt.collapsed)

    def _conversation(self, text: str, *, with_image: bool) -> str:
        content = [{"type": "image"}] * with_image + [{"type": "text", "text": text}]
        return str(self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        ))  # fmt: skip

    def response(self, text: str) -> Tensor:
        """Ids of an answer, ended by the end-of-turn token, once."""
        return response_ids(self.tokenizer, text)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _encode(self, keys: Sequence[_Key]) -> list[EncodedPrompt]:
        records = [self.records[index] for index, _ in keys]
        texts = [self.render(self.records[index], note) for index, note in keys]
        images = [record.open_image() for record in records]
        batch = self.processor(
            text=list(texts), images=images, padding=True, padding_side="right", return_tensors="pt"
        )
        parts = self._split_pixels(batch, len(records))
        prompts = []
        for row, record in enumerate(records):
            expanded = batch["input_ids"][row][batch["attention_mask"][row].bool()].clone()
            if len(expanded) > self.max_prompt_tokens:
                raise DataError(
                    f"row {record.id}: prompt has {len(expanded)} tokens, "
                    f"max_prompt_tokens is {self.max_prompt_tokens}"
                )
            collapsed = self.tokenizer(texts[row], add_special_tokens=False)["input_ids"]
            prompts.append(EncodedPrompt(expanded, list(collapsed), parts[row]))
        return prompts

    def _split_pixels(self, batch: Any, count: int) -> list[dict[str, Tensor]]:
        """Per prompt; families either stack images (dim 0 = image) or concatenate patches."""
        features = {k: v for k, v in batch.items() if k not in _TOKEN_KEYS}
        grid = features.get("image_grid_thw")
        sizes = [1] * count if grid is None else grid.prod(-1).tolist()
        parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
        for name, value in features.items():
            lengths = sizes if name == "pixel_values" and grid is not None else [1] * count
            if sum(lengths) != len(value):
                raise DataError(f"processor output {name!r}: {len(value)} rows for {count} images")
            for part, piece in zip(parts, value.split(lengths), strict=True):
                part[name] = piece.clone()
        return parts

    def _remember(self, key: _Key, prompt: EncodedPrompt) -> None:
        self._cache[key] = prompt
        self._bytes += _size(prompt)
        while self._bytes > self.CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._bytes -= _size(dropped)


def response_ids(tokenizer: Any, text: str) -> Tensor:
    """Ids of an answer, ended by the end-of-turn token, once; special tokens in it stay text."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return torch.tensor([*ids, tokenizer.eos_token_id])


def forged_token(text: str, tokenizer: Any) -> str | None:
    """The first special token that user text spells out, if any: text is data, not structure."""
    return next((t for t in tokenizer.all_special_tokens if t in text), None)


def _size(prompt: EncodedPrompt) -> int:
    return sum(t.numel() * t.element_size() for t in prompt.pixels.values())

"""The one owner of image placeholders: prompts to token ids and pixels, once per prompt."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from rlsys.data.encoded import EncodedCache, EncodedPrompt
from rlsys.data.rows import Prompt, Rows, with_hint
from rlsys.errors import DataError
from rlsys.models.families.registry import family_of_processor
from rlsys.models.family import Family
from rlsys.models.features import Pixels
from rlsys.models.load import structure_tokens

_Key = tuple[int, str]
"""Dataset row and hint."""

# What image processors raise for a picture that they cannot cut or scale.
_UNFIT = (ValueError, TypeError, IndexError, RuntimeError, ZeroDivisionError, OverflowError)


class PromptEncoder:
    """Renders the chat template, expands placeholders and processes pixels; keeps what it encoded.

    Args: processor of the model; records of one split; max_prompt_tokens after expansion; cache:
    shared with other encoders (default: one of its own); kind: of the processor, the same for those
    that do the same: the same prompt, in whichever split, is encoded once.
    """

    def __init__(
        self,
        processor: Any,
        records: Rows[Prompt],
        max_prompt_tokens: int,
        cache: EncodedCache | None = None,
        kind: str = "",
    ) -> None:
        self.processor, self.records = processor, records
        self.tokenizer = processor.tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.family = family_of_processor(processor)
        self.structure = structure_tokens(processor)
        vocabulary = self.tokenizer.get_vocab()
        # -1: a language model has neither
        self.image_token_id: int = vocabulary.get(self.family.visual_token(processor), -1)
        self._placeholder_id: int = vocabulary.get(self.family.placeholder(processor), -1)
        self._bos = _leading_token(self.tokenizer)
        self._cache, self._kind = cache or EncodedCache(), kind
        self._blank = Pixels()
        # Tokens by which images make a prompt grow: by their sizes, and by row.
        self._growth: dict[tuple[tuple[int, int], ...], int] = {(): 0}
        self._grown: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._lock = threading.Lock()  # engines encode from several threads

    def prompts(
        self, indices: Sequence[int], hints: Sequence[str] | None = None
    ) -> list[EncodedPrompt]:
        """The encoded prompts of these dataset rows.

        Args: hints: put after each question (default: none).
        Raises: DataError for an over-long prompt or text that imitates a special token.
        """
        with self._lock:
            return self._prompts(list(zip(indices, hints or [""] * len(indices), strict=True)))

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """Tokens of these dataset rows' prompts after expansion: a rank plans with rows that others
        encode. Of the images only the sizes are read; the first of each size is processed.
        Raises: DataError for an over-long prompt, on every rank alike.
        """
        with self._lock:
            missing = [row for row in dict.fromkeys(indices) if row not in self._lengths]
            texts = [self.render(self.records[row]) for row in missing]
            collapsed = (
                self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
            )
            for row, ids in zip(missing, collapsed, strict=True):
                length = len(ids) + self._expansion(row)
                self._check_length(row, length)
                self._lengths[row] = length
            return [self._lengths[row] for row in indices]

    def _prompts(self, keys: list[_Key]) -> list[EncodedPrompt]:
        found: dict[_Key, EncodedPrompt] = {}
        for key in sorted(set(keys)):
            shown = self._shown(key)
            kept = self._cache.get(shown)
            found[key] = kept or self._encode(key)
            self._check_length(key[0], len(found[key].expanded))
            if kept is None:
                self._cache.put(shown, found[key], found[key].nbytes)
        return [found[key] for key in keys]

    def _shown(self, key: _Key) -> Hashable:
        """All that decides what a prompt is encoded to."""
        record = self.records[key[0]]
        text = (record.question, key[1], record.history, record.system)
        return (self._kind, *text, record.images, record.blank, record.max_pixels)

    def render(self, record: Prompt, hint: str = "") -> str:
        """The conversation as text, with one placeholder per image, and with the token that the
        tokenizer puts before any text.
        """
        text = with_hint(record.question, hint)
        _check_text(record, text, self.structure)
        check_image_count(record, self.family)
        turns = [part for turn in record.history for part in turn]
        try:
            return self._conversation(text, len(record.images), turns, record.system)
        except TemplateError as error:  # it may refuse a system prompt, or an order of turns
            raise DataError(f"row {record.id}: the chat template refuses it: {error}") from error

    def instruct(self, text: str, row: int | None) -> tuple[list[int], int]:
        """Any instruction about a dataset row's images, or about none.

        Returns: ids with one placeholder per image, and their number once they are expanded.
        Raises: DataError for text that spells a special token.
        """
        forged = forged_token(text, self.structure)
        if forged:
            raise DataError(f"an instruction contains the special token {forged!r}")
        if row is not None:
            check_image_count(self.records[row], self.family)
        rendered = self._conversation(text, 0 if row is None else len(self.records[row].images))
        ids = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        with self._lock:
            return list(ids), len(ids) + (0 if row is None else self._expansion(row))

    def _expansion(self, row: int) -> int:
        """How many tokens a row's prompt grows by: its images' sizes decide. Under the lock."""
        if row not in self._grown:
            record = self.records[row]
            sizes = tuple(record.image_sizes())
            if sizes not in self._growth:
                text = self._conversation("", len(sizes))
                expanded = self._process(record, text)["input_ids"][0]
                collapsed = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                self._growth[sizes] = len(expanded) - len(collapsed)
            self._grown[row] = self._growth[sizes]
        return self._grown[row]

    def _check_length(self, row: int, length: int) -> None:
        if length > self.max_prompt_tokens:
            raise DataError(
                f"row {self.records[row].id}: prompt has {length} tokens, "
                f"max_prompt_tokens is {self.max_prompt_tokens}"
            )

    def _conversation(
        self, text: str, images: int, history: Sequence[str] = (), system: str = ""
    ) -> str:
        """history: texts of user and model in turn. Images stand at the start of the first."""
        messages: list[dict[str, Any]] = [
            {
                "role": "assistant" if number % 2 else "user",
                "content": [{"type": "text", "text": said}],
            }
            for number, said in enumerate([*history, text])
        ]
        messages[0]["content"] = [*[{"type": "image"}] * images, *messages[0]["content"]]
        if system:
            content = [{"type": "text", "text": system}]
            messages.insert(0, {"role": "system", "content": content})
        rendered = str(
            self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        )
        return rendered if rendered.startswith(self._bos) else self._bos + rendered

    def blank(self) -> Pixels:
        """Pixels of an empty picture: what a batch without images still shows the vision tower, so
        that every rank trains the same parameters in every step.
        """
        if not self._blank and self.family.max_images != 0:
            image = Image.new("RGB", (56, 56))
            batch = self._call(self._conversation("", 1), [image])
            self._blank = Pixels(self.family.pixels(batch, self.processor))
        return self._blank

    def response(self, text: str) -> Tensor:
        """Ids of an answer, ended by the end-of-turn token, once."""
        return response_ids(self.tokenizer, text)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _encode(self, key: _Key) -> EncodedPrompt:
        """A prompt alone, so that its tiles are padded to those of no other prompt."""
        record = self.records[key[0]]
        text, count = self.render(record, key[1]), len(record.images)
        collapsed = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if collapsed.count(self._placeholder_id) != count:
            raise DataError(
                f"row {record.id}: the chat template wrote "
                f"{collapsed.count(self._placeholder_id)} placeholders for {count} images"
            )
        batch = self._process(record, text)
        expanded = batch["input_ids"][0].clone()
        pixels = Pixels(self.family.pixels(batch, self.processor) if count else {})
        return EncodedPrompt(expanded, collapsed, pixels)

    def _process(self, record: Prompt, text: str) -> Any:
        images = record.open_images()
        try:
            return self._call(text, images)
        except _UNFIT as error:
            sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
            raise DataError(
                f"row {record.id}: its images ({sizes} pixels) do not fit the processor: {error}"
            ) from error

    def _call(self, text: str, images: Sequence[Image.Image]) -> Any:
        shown = {"images": [list(images)]} if images else {}
        return self.processor(text=[text], **shown, add_special_tokens=False, return_tensors="pt")


def _leading_token(tokenizer: Any) -> str:
    """What the tokenizer puts before any text by default, empty for nothing."""
    ids = tokenizer("a")["input_ids"]
    leads = len(ids) > 1 and ids[0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if leads else ""


def response_ids(tokenizer: Any, text: str) -> Tensor:
    """Ids of an answer, ended by the end-of-turn token, once; special tokens in it stay text."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return torch.tensor([*ids, tokenizer.eos_token_id])


def forged_token(text: str, special_tokens: Iterable[str]) -> str | None:
    """The first special token that user text spells out, if any: text is data, not structure."""
    return next((t for t in special_tokens if t in text), None)


def check_image_count(record: Prompt, family: Family) -> None:
    """Raises: DataError for a row with more images than a model of the family reads."""
    if has_too_many_images(record, family):
        raise DataError(
            f"row {record.id}: has {len(record.images)} images, {family.name} models read at most "
            f"{family.max_images}"
        )


def has_too_many_images(record: Prompt, family: Family) -> bool:
    return family.max_images is not None and len(record.images) > family.max_images


def forged_part(
    record: Prompt, question: str, special_tokens: Iterable[str]
) -> tuple[str, str] | None:
    """The first part of a prompt that spells out a special token, and the token, if any does."""
    turns = [("an earlier turn", part) for turn in record.history for part in turn]
    for what, said in [("the question", question), ("the system prompt", record.system), *turns]:
        forged = forged_token(said, special_tokens)
        if forged:
            return what, forged
    return None


def _check_text(record: Prompt, question: str, special_tokens: Iterable[str]) -> None:
    found = forged_part(record, question, special_tokens)
    if found:
        raise DataError(f"row {record.id}: {found[0]} contains the special token {found[1]!r}")

"""What a model family must say about itself. One file per family implements it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

PIECES = "pieces"
"""Key of a prompt's pixels: how many entries its images have in the encoded output."""


Features = Tensor | list[Tensor]
"""Of images in order: one tensor, or a list with one of each."""


class Family:
    """A family whose base model takes encoded images (``mm_encoder_outputs``), as transformers'
    vision-language models do. A family overrides what differs.

    model_types: ``model_type`` of its configurations; layout: keys of a prompt's pixels that
    ``inputs`` and ``positions`` read; processor: name of its processor class;
    vision, projector: components of the names of their weights, all others are the language
    model's; max_images: most images of a prompt, None for any number; packs_images: whether the
    tower gives attention the patches of all images behind each other, with ``cu_seq_lens_q``.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    processor: ClassVar[str]
    vision: ClassVar[tuple[str, ...]]
    projector: ClassVar[tuple[str, ...]]
    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    max_images: ClassVar[int | None] = None
    layout: ClassVar[tuple[str, ...]] = ()
    packs_images: ClassVar[bool] = False

    def placeholder(self, processor: Any) -> str:
        """The token of an image in a rendered conversation, one per image."""
        return str(processor.image_token)

    def visual_token(self, processor: Any) -> str:
        """The token that is repeated once per visual feature in an expanded prompt."""
        return str(processor.image_token)

    def structure(self, processor: Any) -> set[str]:
        """Tokens that must not be spelled by a user or sampled by a policy, besides those that the
        tokenizer calls special: what its processor puts around and between images.
        """
        named = (getattr(processor, key) for key in vars(processor) if key.endswith("_token"))
        return {token for token in named if isinstance(token, str) and token}

    def check(self, processor: Any) -> None:
        """Raises: ModelError for settings of the processor that engine and trainer read
        differently.
        """

    def pixels(self, batch: Any, processor: Any) -> dict[str, Tensor]:
        """What the vision tower reads of one prompt's images, out of the processor's output for
        that prompt alone. Entries of several prompts can be joined along dimension 0; ``PIECES``
        has one element.
        """
        return {
            "pixel_values": batch["pixel_values"],
            PIECES: torch.tensor([len(batch["pixel_values"])]),
        }

    def encode(self, trunk: Any, pixels: dict[str, Tensor]) -> Any:
        """transformers' output of vision tower and projector."""
        given = {key: value for key, value in pixels.items() if key != PIECES}
        return trunk.get_image_features(**given, return_dict=True)

    def features(self, encoded: Any) -> dict[str, Features]:
        """What the base model reads of the output."""
        return {"pooler_output": encoded.pooler_output}

    def from_features(self, features: dict[str, Features]) -> Any:
        """An output with these features, of any number of images."""
        return SimpleNamespace(**features)

    def select(self, encoded: Any, entries: Sequence[int]) -> Any:
        """The output with these entries, in this order; an entry may repeat."""
        encoded.pooler_output = pick(encoded.pooler_output, entries)
        return encoded

    def unused(self, encoded: Any) -> Tensor:
        """A scalar that depends on everything that was encoded."""
        return torch.stack([features.sum() for features in encoded.pooler_output]).sum()

    def inputs(
        self, text: dict[str, Tensor], pixels: dict[str, Tensor], entries: Sequence[int]
    ) -> dict[str, Tensor]:
        """Arguments of the base model besides the encoded images. Args: text: input_ids,
        attention_mask and mm_token_type_ids [B, L]; entries: of the batch's images, in order.
        """
        return {key: text[key] for key in ("input_ids", "attention_mask")}

    def shares_prefixes(self, device: str) -> bool:
        """Whether a prompt's tokens attend causally on this kind of device, so that several answers
        can share what is computed of it.
        """
        return True

    def positions(
        self, trunk: Any, text: dict[str, Tensor], pixels: dict[str, Tensor], entries: Sequence[int]
    ) -> Tensor:
        """[.., B, L] positions that the base model gives to the tokens of plain rows. Args: as of
        ``inputs``.
        """
        rows, length = text["input_ids"].shape
        return torch.arange(length, device=text["input_ids"].device).expand(rows, -1)

    def parameters(self, word: str) -> tuple[str, ...]:
        """Components of weight names that a word of ``freeze`` stands for: vision, projector, or
        a component itself.
        """
        return {"vision": self.vision, "projector": self.projector}.get(word, (word,))

    def unread(self, config: Any) -> str | None:
        """Regular expression that matches the parameters that no forward pass reads, and that the
        rollout engine does not hold. Args: config: of the model.
        """
        return None

    def outside_language(self) -> str | None:
        """Regular expression that matches the modules of vision tower and projector."""
        names = "|".join(re.escape(name) for name in (*self.vision, *self.projector))
        return rf"(.*\.)?({names})(\..*)?" if names else None


def pick(features: Any, entries: Sequence[int]) -> Any:
    """Entries of a tensor, or of a list of tensors."""
    if isinstance(features, Tensor):
        return features[torch.tensor(entries, device=features.device)]
    return [features[entry] for entry in entries]

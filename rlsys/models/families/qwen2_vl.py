"""Qwen2-VL and Qwen2.5-VL: patches of all images in one tensor, positions from each image's grid.

Sources: Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlsys.models.family import PIECES, Family, pick

GRID = "image_grid_thw"


class Qwen2VL(Family):
    name = "Qwen2-VL"
    model_types = ("qwen2_vl",)
    processor = "Qwen2VLProcessor"
    vision: ClassVar[tuple[str, ...]] = ("blocks", "patch_embed")
    projector: ClassVar[tuple[str, ...]] = ("merger",)
    layout: ClassVar[tuple[str, ...]] = (GRID,)
    packs_images: ClassVar[bool] = True

    def pixels(self, batch: Any, processor: Any) -> dict[str, Tensor]:
        return {
            "pixel_values": batch["pixel_values"],
            GRID: batch[GRID],
            PIECES: torch.tensor([len(batch[GRID])]),
        }

    def inputs(
        self, text: dict[str, Tensor], pixels: dict[str, Tensor], entries: Sequence[int]
    ) -> dict[str, Tensor]:
        """Positions follow each row's own images; without one they are those of plain text."""
        return dict(text) | ({GRID: pick(pixels[GRID], entries)} if entries else {})

    def positions(
        self, trunk: Any, text: dict[str, Tensor], pixels: dict[str, Tensor], entries: Sequence[int]
    ) -> Tensor:
        """[3, B, L] of time, height and width where there is an image."""
        if not entries:
            return super().positions(trunk, text, pixels, entries)
        positions: Tensor = trunk.get_rope_index(**self.inputs(text, pixels, entries))[0]
        return positions


class Qwen25VL(Qwen2VL):
    name = "Qwen2.5-VL"
    model_types = ("qwen2_5_vl",)
    processor = "Qwen2_5_VLProcessor"

"""Qwen3-VL: as Qwen2-VL, and features of inner vision layers enter the first language layers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlsys.models.families.qwen2_vl import Qwen2VL
from rlsys.models.family import Features, pick


class Qwen3VL(Qwen2VL):
    name = "Qwen3-VL"
    model_types = ("qwen3_vl",)
    processor = "Qwen3VLProcessor"
    vision = ("blocks", "patch_embed", "pos_embed")
    projector = ("merger", "deepstack_merger_list")

    def select(self, encoded: Any, entries: Sequence[int]) -> Any:
        encoded.deepstack_features = [pick(each, entries) for each in encoded.deepstack_features]
        return super().select(encoded, entries)

    def features(self, encoded: Any) -> dict[str, Features]:
        """Those of inner layers by their numbers."""
        inner = {str(number): each for number, each in enumerate(encoded.deepstack_features)}
        return super().features(encoded) | inner

    def from_features(self, features: dict[str, Features]) -> Any:
        inner = [features[str(number)] for number in range(len(features) - 1)]
        pooled = features["pooler_output"]
        return SimpleNamespace(pooler_output=pooled, deepstack_features=inner)

    def unused(self, encoded: Any) -> Tensor:
        layers = [features.sum() for each in encoded.deepstack_features for features in each]
        return super().unused(encoded) + torch.stack(layers).sum()

"""Faster, equal forms of two parts of transformers' vision towers.

A convolution whose kernel is the whole patch is a matrix product, which a CPU computes several
times faster. Towers that hold the patches of all images behind each other attend image by image, or
window by window, unless a flash-attention package is there; here one call takes all of a length.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

PACKED = "packed_flash"
"""Name of ``packed_attention``. Towers give the lengths of their sequences to attention functions
that have "flash" in their names."""


def speed_up_vision(model: Any, *, packs_images: bool) -> None:
    """Change the vision tower in place; outputs are the same up to rounding."""
    from transformers import AttentionInterface

    for module in model.modules():
        if isinstance(module, nn.Conv3d) and _is_patch_product(module):
            module.__class__ = PatchProduct
    if not packs_images:
        return
    AttentionInterface.register(PACKED, packed_attention)
    config = deepcopy(model.config.vision_config)  # no model can be built with this one
    config._attn_implementation = PACKED
    for module in model.modules():
        if type(module).__name__.endswith("VisionAttention"):
            module.config = config


def _is_patch_product(conv: nn.Conv3d) -> bool:
    plain = conv.groups == 1 and set(conv.dilation) == {1} and set(conv.padding) == {0}
    return type(conv) is nn.Conv3d and plain and conv.stride == conv.kernel_size


class PatchProduct(nn.Conv3d):
    """A convolution that multiplies inputs of exactly one patch by its flattened kernel."""

    def forward(self, input: Tensor) -> Tensor:
        if tuple(input.shape[2:]) != tuple(self.kernel_size):
            return super().forward(input)
        product = linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return product[..., None, None, None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Full attention inside each of the sequences that lie behind each other.

    Args: query, key, value: [1, H, S, D]; cu_seq_lens_q: where sequences start and the last ends,
    as in flash attention's variable-length form. Returns: [1, S, H, D].
    """
    ends = cu_seq_lens_q.tolist()
    starts: dict[int, list[int]] = defaultdict(list)
    for start, end in pairwise(ends):
        starts[end - start].append(start)
    states = torch.cat((query, key, value)).transpose(1, 2)  # [3, S, H, D]
    places, parts = [], []
    for length, firsts in starts.items():
        at = torch.tensor(firsts)[:, None] + torch.arange(length)
        rows = at.flatten().to(query.device)
        chosen = states if len(starts) == 1 else states[:, rows]
        q, k, v = chosen.unflatten(1, at.shape).transpose(2, 3)  # each [N, H, length, D]
        attended = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        places.append(rows)
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    output = torch.cat(parts)
    if len(parts) > 1:
        output = output[torch.cat(places).argsort()]
    return output[None], None

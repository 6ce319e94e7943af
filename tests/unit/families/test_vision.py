"""The faster forms of vision towers give what transformers' own forms give."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rlsys.data.collate import collate
from rlsys.models.load import load_policy
from rlsys.models.vision import PACKED, PatchProduct, packed_attention
from rlsys.roles.reference import sampled_policy

Checkpoint = Callable[[str], SimpleNamespace]
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def is_packed(module: nn.Module) -> bool:
    return getattr(getattr(module, "config", None), "_attn_implementation", "") == PACKED


def slowed(model: nn.Module) -> None:
    """Back to transformers' own forms."""
    for module in model.modules():
        if isinstance(module, PatchProduct):
            module.__class__ = nn.Conv3d
        if is_packed(module):
            module.config = SimpleNamespace(_attn_implementation="sdpa")


def outputs(each: SimpleNamespace, slow: bool) -> tuple[Tensor, dict[str, Tensor]]:
    policy = sampled_policy(each.folder, "float32", each.encoder)
    if slow:
        slowed(policy)
    answers = [each.encoder.response("it is water"[: 3 + n]) for n in each.rows]
    batch = collate(each.encoder, each.rows, None, answers)
    said = policy(batch.inputs, batch.logit_positions, batch.labels)
    said.sum().backward()
    return said, {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def test_log_probabilities_and_gradients_are_those_of_the_slow_form(each: SimpleNamespace) -> None:
    (said, grads), (expected, expected_grads) = outputs(each, False), outputs(each, True)

    torch.testing.assert_close(said, expected, rtol=0, atol=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        assert (grads[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-5, name


@pytest.mark.parametrize("model_type", QWEN)
def test_towers_with_packed_images_run_both_faster_forms(
    checkpoint: Checkpoint, model_type: str
) -> None:
    model = load_policy(checkpoint(model_type).folder, "float32")

    assert sum(map(is_packed, model.modules())) == len(model.model.visual.blocks)
    assert isinstance(model.model.visual.patch_embed.proj, PatchProduct)
    assert type(model)(model.config).config.vision_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("lengths", [[4, 4, 4], [3, 1, 5, 1, 3], [7]])
def test_a_packed_sequence_attends_to_itself_alone(lengths: list[int]) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, sum(lengths), 8)
    ends = torch.tensor([0, *lengths]).cumsum(0)

    packed, _ = packed_attention(
        nn.Identity(), query, key, value, None, scaling=0.3, cu_seq_lens_q=ends
    )

    parts = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    alone = [(0.3 * q @ k.mT).softmax(-1) @ v for q, k, v in parts]
    torch.testing.assert_close(packed, torch.cat(alone, dim=2).transpose(1, 2))


def test_an_input_larger_than_the_kernel_is_convolved() -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(3, 5, kernel_size=(2, 4, 4), stride=(2, 4, 4))
    images = torch.randn(2, 3, 4, 8, 12)
    expected = plain(images)
    plain.__class__ = PatchProduct

    torch.testing.assert_close(plain(images), expected)
    torch.testing.assert_close(plain(images[:, :, :2, :4, :4]), expected[:, :, :1, :1, :1])

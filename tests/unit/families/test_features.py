"""Images under a frozen tower are encoded once, and nothing changes by that."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsys.config.schema import TrainConfig
from rlsys.data.collate import Collated, collate
from rlsys.data.encoder import PromptEncoder
from rlsys.models.adapters import add_lora
from rlsys.models.families.registry import family_of
from rlsys.models.features import FeatureCache, Pixels, tower_digest
from rlsys.models.heads import PolicyModule, ScorerModule, freeze
from rlsys.models.load import load_trunk
from rlsys.roles.reference import sampled_policy

Checkpoint = Callable[[str], SimpleNamespace]


def frozen_policy(each: SimpleNamespace, cache: FeatureCache | None) -> PolicyModule:
    policy = sampled_policy(each.folder, "float32", each.encoder)
    if family_of(policy.vlm.config).vision:
        freeze(policy, ["vision", "projector"])
    policy.cache = cache
    return policy


def batch_of(each: SimpleNamespace, rows: list[int]) -> Collated:
    answers = [each.encoder.response("it is not safe to drink"[: 3 * n]) for n in range(len(rows))]
    return collate(each.encoder, rows, None, answers)


def gradients(policy: PolicyModule, batch: Collated) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad(set_to_none=True)
    said = policy(batch.inputs, batch.logit_positions, batch.labels)
    said.sum().backward()
    return said, {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def encoded_by(policy: PolicyModule, run: Callable[[], Any]) -> int:
    """How often the tower runs."""
    seen: list[int] = []
    family, trunk = family_of(policy.vlm.config), policy.vlm.base_model
    with pytest.MonkeyPatch.context() as patch:
        encode = family.encode

        def counted(given: Any, pixels: dict[str, Tensor]) -> Any:
            seen.append(1)
            return encode(given, pixels)

        patch.setattr(family, "encode", counted)
        run()
    assert trunk is policy.vlm.base_model
    return len(seen)


def test_features_that_are_known_change_nothing(each: SimpleNamespace) -> None:
    """Rows of every shape, twice each, without an image too; then rows without any."""
    shown = [row for row, record in enumerate(each.encoder.records) if record.images]
    without = [row for row in each.rows if row not in shown]
    plain, policy = frozen_policy(each, None), frozen_policy(each, FeatureCache())
    for rows in ([*each.rows, *each.rows], without):
        batch = batch_of(each, rows)
        said, expected = gradients(plain, batch)
        for _ in range(2):  # once computed, once known
            known, found = gradients(policy, batch)
            assert (known - said).abs().max() <= 1e-5
            assert found.keys() == expected.keys()
            scale = max(float(gradient.norm()) for gradient in expected.values())
            for name, gradient in expected.items():
                assert float((found[name] - gradient).norm()) <= 1e-4 * scale, name
    if family_of(policy.vlm.config).max_images != 0:
        assert shown
        assert encoded_by(policy, lambda: gradients(policy, batch_of(each, each.rows))) == 0


def test_an_image_is_encoded_once_for_all_roles_with_the_same_tower(
    checkpoint: Checkpoint,
) -> None:
    each, cache = checkpoint("qwen2_5_vl"), FeatureCache()
    policy, reference = frozen_policy(each, cache), frozen_policy(each, cache)
    critic = ScorerModule(load_trunk(each.folder, "float32").requires_grad_(False))
    critic.cache = cache
    rows = [row for row in each.rows if each.encoder.records[row].images]
    batch = batch_of(each, rows)
    assert encoded_by(policy, lambda: gradients(policy, batch)) == len(rows)
    # another encoder of the same rows: pictures are known by their contents
    again = PromptEncoder(each.encoder.processor, each.encoder.records, 4096)
    other = collate(again, rows, None, [again.response("no")] * len(rows))

    def everyone() -> None:
        for module in (policy, reference):
            module(other.inputs, other.logit_positions, other.labels)
        critic(other.inputs, other.last_positions)

    assert encoded_by(policy, everyone) == 0


def test_the_bits_do_not_depend_on_what_was_encoded_before(checkpoint: Checkpoint) -> None:
    each = checkpoint("qwen2_5_vl")
    rows = [row for row in each.rows if each.encoder.records[row].images]
    warm, cold = frozen_policy(each, FeatureCache()), frozen_policy(each, FeatureCache())
    gradients(warm, batch_of(each, rows[:2]))
    batch = batch_of(each, rows)
    assert torch.equal(gradients(warm, batch)[0], gradients(cold, batch)[0])


def test_what_is_not_frozen_as_a_whole_is_computed_anew(checkpoint: Checkpoint) -> None:
    each = checkpoint("qwen2_5_vl")
    policy = sampled_policy(each.folder, "float32", each.encoder)
    trunk = policy.vlm.base_model
    assert tower_digest(trunk) is None
    freeze(policy, ["vision"])
    assert tower_digest(trunk) is None  # the projector trains
    freeze(policy, ["projector"])
    frozen = tower_digest(trunk)
    assert frozen == tower_digest(frozen_policy(each, None).vlm.base_model)
    with torch.no_grad():
        next(p for n, p in trunk.named_parameters() if "blocks" in n).add_(1e-3)
    assert tower_digest(trunk) not in (None, frozen)  # other weights
    policy.to(torch.bfloat16)
    assert tower_digest(trunk) != frozen
    next(p for n, p in trunk.named_parameters() if "merger" in n).ds_id = 0  # type: ignore[attr-defined]
    assert tower_digest(trunk) is None  # in shards
    drawn = frozen_policy(each, None)
    drawn.vlm.config.vision_config.hidden_dropout = 0.1
    assert tower_digest(drawn.vlm.base_model) is None
    adapted = sampled_policy(each.folder, "float32", each.encoder)
    add_lora(adapted.vlm, TrainConfig(lora_rank=2), seed=0)
    assert tower_digest(adapted.vlm.base_model) == frozen
    text = sampled_policy((each := checkpoint("qwen2")).folder, "float32", each.encoder)
    assert tower_digest(text.requires_grad_(False).vlm.base_model) is None


def test_pixels_are_told_apart_by_their_contents() -> None:
    one = {"pixel_values": torch.zeros(2, 3), "grid": torch.ones(1, 2)}
    same = Pixels({name: value.clone() for name, value in reversed(one.items())})
    assert Pixels(one).digest == same.digest
    for other in (
        one | {"pixel_values": torch.full((2, 3), 1e-9)},
        one | {"pixel_values": torch.zeros(3, 2)},
        one | {"grid": torch.ones(2, 1)},
        {"pixel_values": one["pixel_values"]},
    ):
        assert Pixels(other).digest != same.digest


def test_the_oldest_features_are_dropped_and_computed_again(checkpoint: Checkpoint) -> None:
    each = checkpoint("qwen2_5_vl")
    rows = [row for row in each.rows if each.encoder.records[row].images][:2]
    policy = frozen_policy(each, cache := FeatureCache())
    gradients(policy, batch_of(each, rows))
    cache.limit = cache.nbytes - 1
    first = batch_of(each, rows)
    assert encoded_by(policy, lambda: gradients(policy, first)) == 0
    cache.put("another", None, cache.limit)
    assert cache.nbytes == cache.limit
    assert encoded_by(policy, lambda: gradients(policy, first)) == len(rows)

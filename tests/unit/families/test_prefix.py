"""Answers to one prompt share what is computed of it, and nothing changes by that."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsys.config.schema import TrainConfig
from rlsys.data.collate import Collated, collate
from rlsys.models import heads
from rlsys.models.adapters import add_lora
from rlsys.models.families.registry import family_of
from rlsys.models.heads import PolicyModule, ScorerModule
from rlsys.models.packing import pack, shared_width
from rlsys.roles.reference import sampled_policy

Checkpoint = Callable[[str], SimpleNamespace]
MODULES: dict[str, tuple[PolicyModule, ScorerModule]] = {}


def modules(each: SimpleNamespace) -> tuple[PolicyModule, ScorerModule]:
    """Policy and value model on one trunk, made once."""
    if each.folder not in MODULES:
        policy = sampled_policy(each.folder, "float32", each.encoder).eval()
        MODULES[each.folder] = policy, ScorerModule(policy.vlm.base_model)
    return MODULES[each.folder]


# Rows of several prompts in any order, with several answers each; some are only their end.
batches = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=2, max_size=7)


def batch_of(each: SimpleNamespace, drawn: list[tuple[int, int]]) -> Collated:
    rows = [each.rows[number % len(each.rows)] for number, _ in drawn]
    letters = each.encoder.response("it is not safe to drink")
    end = each.encoder.response("")
    answers = [torch.cat([letters[n : 2 * n], end]) for _, n in drawn]
    return collate(each.encoder, rows, None, answers)


def outputs(
    each: SimpleNamespace, batch: Collated, width: int | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, values, and the gradients of both. Args: width: 0 for the plain form."""
    policy, scorer = modules(each)
    policy.zero_grad(set_to_none=True)
    scorer.zero_grad(set_to_none=True)
    with pytest.MonkeyPatch.context() as patch:
        if width is not None:
            patch.setattr(heads, "shared_width", lambda *_: width)
        logprobs = policy(batch.inputs, batch.logit_positions, batch.labels)
        values = scorer(batch.inputs, batch.logit_positions)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn((2, *logprobs.shape), generator=generator) * (batch.labels >= 0)
    (weights[0] * logprobs + weights[1] * values).sum().backward()
    named = [*policy.named_parameters(), *scorer.named_parameters()]
    return logprobs, values, {n: p.grad.clone() for n, p in named if p.grad is not None}


def assert_equal(
    packed: tuple[Tensor, Tensor, dict[str, Tensor]],
    plain: tuple[Tensor, Tensor, dict[str, Tensor]],
) -> None:
    assert (packed[0] - plain[0]).abs().max() <= 1e-5
    assert (packed[1] - plain[1]).abs().max() <= 1e-5
    assert packed[2].keys() == plain[2].keys()
    largest = max(float(gradient.norm()) for gradient in plain[2].values())
    for name, gradient in plain[2].items():
        # some have a gradient of zero by construction, as biases of keys
        scale = max(float(gradient.norm()), 1e-3 * largest)
        assert float((packed[2][name] - gradient).norm()) <= 1e-4 * scale, name


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(drawn=batches)
def test_sharing_a_prompt_changes_nothing(
    each: SimpleNamespace, drawn: list[tuple[int, int]]
) -> None:
    batch = batch_of(each, [*drawn, (drawn[0][0], 5)])
    config = modules(each)[0].vlm.config
    assert shared_width(config, "cpu") == config.get_text_config().hidden_size
    assume(heads._packing(config, batch.inputs) is not None)
    assert_equal(outputs(each, batch, None), outputs(each, batch, 0))


def test_a_batch_of_every_shape_is_computed_once_by_prompt(each: SimpleNamespace) -> None:
    batch = batch_of(each, [(row, n) for n in (3, 0, 6) for row in each.rows])
    trunk = modules(each)[0].vlm.base_model
    seen: list[int] = []
    layer = trunk.get_input_embeddings()
    hook = layer.register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    with torch.no_grad():
        packed = outputs_of(each, batch, None)
        plain = outputs_of(each, batch, 0)
    hook.remove()
    assert (packed - plain).abs().max() <= 1e-5
    assert seen[0] < 0.6 * seen[1]


def outputs_of(each: SimpleNamespace, batch: Collated, width: int | None) -> Tensor:
    policy, _ = modules(each)
    with pytest.MonkeyPatch.context() as patch:
        if width is not None:
            patch.setattr(heads, "shared_width", lambda *_: width)
        return policy(batch.inputs, batch.logit_positions, batch.labels)


def test_a_window_counts_from_the_answers_own_place(checkpoint: Checkpoint) -> None:
    each = checkpoint("gemma3")
    text = modules(each)[0].vlm.config.get_text_config()
    batch = batch_of(each, [(1, 3), (1, 6), (1, 4)])
    wide, window = outputs_of(each, batch, 0), text.sliding_window
    text.sliding_window = 7
    try:
        packed, plain = outputs(each, batch, None), outputs(each, batch, 0)
    finally:
        text.sliding_window = window
    assert_equal(packed, plain)
    assert (plain[0] - wide).abs().max() > 1e-3  # the window does matter here


def test_adapters_in_training_share_prompts_too(checkpoint: Checkpoint) -> None:
    each = checkpoint("qwen2_5_vl")
    policy = sampled_policy(each.folder, "float32", each.encoder)
    add_lora(policy.vlm, TrainConfig(lora_rank=2), seed=0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    policy.train()
    adapted = SimpleNamespace(folder="adapted", encoder=each.encoder, rows=each.rows)
    MODULES["adapted"] = policy, ScorerModule(policy.vlm.base_model)
    batch = batch_of(adapted, [(1, 3), (1, 6), (3, 0), (3, 5), (3, 2)])
    packed, plain = outputs(adapted, batch, None), outputs(adapted, batch, 0)
    assert any("lora_A" in name for name in plain[2])
    assert_equal(packed, plain)


def test_a_model_that_cannot_share_runs_the_plain_form(checkpoint: Checkpoint) -> None:
    gemma, config = (modules(checkpoint(name))[0].vlm.config for name in ("gemma3", "qwen2"))
    assert shared_width(gemma, "cuda") == 0  # its pictures' tokens attend to each other there
    for change in (
        {"layer_types": ["full_attention", "linear_attention"]},
        {"model_type": "gpt_neo"},
        {"_attn_implementation": "eager"},
        {"attention_dropout": 0.1},
    ):
        assert shared_width(changed(config, change), "cpu") == 0, change
    assert shared_width(changed(config, {}), "cpu") == config.hidden_size


def changed(config: Any, change: dict[str, Any]) -> Any:
    """Another text configuration inside one of the same family."""
    names = ("layer_types", "model_type", "_attn_implementation", "attention_dropout")
    text = {name: getattr(config, name) for name in (*names, "hidden_size")} | change
    family = family_of(config).model_types[0]
    return SimpleNamespace(model_type=family, get_text_config=lambda: SimpleNamespace(**text))


def test_a_packed_row_by_hand() -> None:
    """A prompt of 2 tokens, with answers of 1 and 2; and one of 3 tokens with an answer of 1."""
    packing = pack([5, 6, 5], [2, 3, 2], [1, 1, 2], width=16)
    assert packing is not None
    # plain rows of 4 tokens: 0..3, 4..7, 8..11; the longer answer comes first
    assert packing.source.tolist() == [[8, 9, 10, 11, 2], [4, 5, 6, 7, 7]]
    assert packing.position.tolist() == [[0, 1, 2, 3, 2], [0, 1, 2, 3, 3]]
    assert packing.part.tolist() == [[0, 0, 1, 1, 2], [0, 0, 0, 1, -1]]
    assert packing.longest.tolist() == [2, 1]
    places = torch.tensor([[1, 2], [2, 3], [1, 3]])
    assert packing.flat_indices(places).tolist() == [[1, 4], [7, 8], [1, 3]]
    assert packing.mask()[:, 0].int().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]],
    ]
    windowed = packing.mask(2)[0, 0].int().tolist()
    assert windowed[3] == [0, 0, 1, 1, 0]
    assert windowed[4] == [0, 1, 0, 0, 1]
    assert pack([5, 6, 5], [2, 3, 2], [1, 1, 2], width=0) is None
    assert pack([5, 6], [2, 3], [1, 1], width=16) is None

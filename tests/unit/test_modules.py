"""The two module shapes: padding invariance, forbidden ids, heads, freezing, adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlsys.config.schema import TrainConfig
from rlsys.data.collate import Collated, collate
from rlsys.data.encoder import PromptEncoder
from rlsys.errors import ModelError
from rlsys.models.adapters import add_lora, lora_scaling, merged, trained_tensors
from rlsys.models.features import Pixels
from rlsys.models.heads import (
    PolicyModule,
    ScorerModule,
    build_policy_module,
    build_scorer_module,
    freeze,
)
from rlsys.models.load import forbidden_ids, load_policy, load_trunk, save_head

ROWS = [0, 1, 2, 3]
ANSWERS = ["it is water", "no", "you use it as the label says", "for you"]
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def policy(tiny: str, encoder: PromptEncoder) -> PolicyModule:
    module = build_policy_module(tiny, "float32", ())
    module.forbidden = tuple(forbidden_ids(encoder.processor, module.vlm.config))
    return module.eval()


@pytest.fixture(scope="module")
def scorer(tiny: str) -> ScorerModule:
    return build_scorer_module(tiny, "float32", new_head=True, seed=3).eval()


def batch_of(encoder: PromptEncoder, rows: Sequence[int], width: int | None = None) -> Collated:
    return collate(encoder, rows, None, [encoder.response(ANSWERS[r]) for r in rows], width)


def one_row_pixels(batch: Collated) -> Pixels:
    """Of a batch whose rows show one prompt."""
    (pixels,) = batch.inputs["pixels"]
    return pixels


def say(module: PolicyModule, batch: Collated, temperature: float = 1.0) -> Tensor:
    return module(batch.inputs, batch.logit_positions, batch.labels, temperature)


def widen(batch: Collated, columns: int, encoder: PromptEncoder) -> Collated:
    """The same rows with more padding behind every one of them."""
    rows = len(batch.inputs["input_ids"])
    pad = {"input_ids": encoder.tokenizer.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    inputs = dict(batch.inputs)
    for name, value in pad.items():
        tail = torch.full((rows, columns), value, dtype=inputs[name].dtype)
        inputs[name] = torch.cat([inputs[name], tail], dim=1)
    return Collated(inputs, batch.logit_positions, batch.labels, batch.last_positions)


def lengths(encoder: PromptEncoder) -> list[int]:
    return [len(encoder.response(text)) for text in ANSWERS]


def real(values: Tensor, encoder: PromptEncoder) -> Tensor:
    """The entries within each row's length, flat."""
    return torch.cat([row[:n] for row, n in zip(values, lengths(encoder), strict=True)])


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


# padding


@torch.no_grad()
def test_a_padded_batch_says_what_single_rows_say(
    policy: PolicyModule, encoder: PromptEncoder
) -> None:
    together = real(say(policy, batch_of(encoder, ROWS)), encoder)
    alone = torch.cat([say(policy, batch_of(encoder, [row]))[0] for row in ROWS])
    assert len({len(p.expanded) for p in encoder.prompts(ROWS)}) > 1  # rows do need padding
    torch.testing.assert_close(together, alone, **TOLERANCE)


@torch.no_grad()
def test_more_padding_changes_nothing(
    policy: PolicyModule, scorer: ScorerModule, encoder: PromptEncoder
) -> None:
    batch = batch_of(encoder, ROWS)
    wide = widen(batch_of(encoder, ROWS, width=20), 9, encoder)
    plain, padded = say(policy, batch), say(policy, wide)
    assert padded.shape == (4, 20)
    assert bool(padded.isfinite().all())
    torch.testing.assert_close(real(padded, encoder), real(plain, encoder), **TOLERANCE)
    torch.testing.assert_close(
        scorer(wide.inputs, wide.last_positions),
        scorer(batch.inputs, batch.last_positions),
        **TOLERANCE,
    )


def test_the_gradient_of_a_padded_batch_is_the_sum_of_its_rows(
    policy: PolicyModule, encoder: PromptEncoder
) -> None:
    real(say(policy, widen(batch_of(encoder, ROWS), 5, encoder)), encoder).sum().backward()
    together = gradients(policy)
    for row in ROWS:
        say(policy, batch_of(encoder, [row])).sum().backward()
    alone = gradients(policy)
    assert together.keys() == alone.keys()
    assert any("visual" in name for name in together)  # pixels are trained through
    for name, gradient in together.items():
        scale = float(alone[name].abs().max())
        assert float((gradient - alone[name]).abs().max()) <= 1e-5 * max(scale, 1.0), name


@torch.no_grad()
def test_a_padded_batch_scores_what_single_rows_score(
    scorer: ScorerModule, encoder: PromptEncoder
) -> None:
    batch = batch_of(encoder, ROWS)
    ends = scorer(batch.inputs, batch.last_positions)
    values = scorer(batch.inputs, batch.logit_positions)
    singles = [batch_of(encoder, [row]) for row in ROWS]
    alone = torch.cat([scorer(single.inputs, single.last_positions) for single in singles])
    torch.testing.assert_close(ends, alone, **TOLERANCE)
    alone = torch.cat([scorer(single.inputs, single.logit_positions)[0] for single in singles])
    torch.testing.assert_close(real(values, encoder), alone, **TOLERANCE)
    assert ends.dtype == torch.float32
    assert len(set(ends.flatten().tolist())) == 4


@torch.no_grad()
def test_a_row_sees_its_own_image_as_transformers_shows_it(
    policy: PolicyModule, scorer: ScorerModule, encoder: PromptEncoder
) -> None:
    """Images go through the tower once each; the model's own forward pass, image by image, is the
    reference."""
    rows = [2, 0, 2, 3, 0]
    batch = batch_of(encoder, rows)
    assert batch.inputs["image_index"].tolist() == [0, 1, 0, 2, 1]
    prompts = encoder.prompts(rows)
    keys = ("input_ids", "attention_mask", "mm_token_type_ids")
    plain: dict[str, Any] = {key: batch.inputs[key] for key in keys}
    plain |= {k: torch.cat([p.pixels[k] for p in prompts]) for k in prompts[0].pixels}
    logits = policy.vlm(**plain, use_cache=False).logits
    logits[..., list(policy.forbidden)] = float("-inf")
    every = logits.log_softmax(-1)
    said = say(policy, batch)
    for row, answer in enumerate(rows):
        count = lengths(encoder)[answer]
        place, label = batch.logit_positions[row, :count], batch.labels[row, :count]
        torch.testing.assert_close(said[row, :count], every[row, place, label], **TOLERANCE)
    hidden = scorer.trunk(**plain, use_cache=False).last_hidden_state
    expected = scorer.head(hidden[torch.arange(len(rows)), batch.last_positions[:, 0]])
    torch.testing.assert_close(scorer(batch.inputs, batch.last_positions), expected, **TOLERANCE)


@torch.no_grad()
def test_a_temperature_divides_the_logits(policy: PolicyModule, encoder: PromptEncoder) -> None:
    """One row, whose logits come from the model's own forward pass."""
    batch, count = batch_of(encoder, [2]), lengths(encoder)[2]
    plain = {key: batch.inputs[key] for key in batch.inputs if key not in ("pixels", "image_index")}
    logits = policy.vlm(**plain, **one_row_pixels(batch), use_cache=False).logits[0]
    logits[:, list(policy.forbidden)] = float("-inf")
    positions, labels = batch.logit_positions[0, :count], batch.labels[0, :count]
    for temperature in (0.7, 1.0, 1.3):
        expected = (logits / temperature).log_softmax(-1)[positions, labels]
        found = say(policy, batch, temperature)[0, :count]
        torch.testing.assert_close(found, expected, **TOLERANCE)
    colder = say(policy, batch, 0.7) - say(policy, batch)
    assert float(colder.abs().max()) > 1e-2
    with pytest.raises(ValueError, match="temperature above 0"):
        say(policy, batch, 0.0)


@torch.no_grad()
def test_logits_are_computed_where_there_is_a_token(
    policy: PolicyModule, encoder: PromptEncoder
) -> None:
    """A row of many tokens makes the others' padding wide, and costs nothing there."""
    seen: list[int] = []
    output = policy.vlm.get_output_embeddings()
    hook = output.register_forward_hook(lambda _, __, logits: seen.append(len(logits)))
    said = say(policy, batch_of(encoder, [0, 1, 2, 3], width=40))
    hook.remove()
    assert seen == [sum(lengths(encoder))]
    for row, count in zip(said, lengths(encoder), strict=True):
        assert (row[:count] < 0).all()
        assert (row[count:] == 0).all()


@torch.no_grad()
def test_the_image_matters(
    policy: PolicyModule, scorer: ScorerModule, encoder: PromptEncoder
) -> None:
    batch = batch_of(encoder, [0])
    pixels = one_row_pixels(batch)
    inverted = Pixels(pixels | {"pixel_values": -pixels["pixel_values"]})
    inputs = batch.inputs | {"pixels": [inverted]}
    other = Collated(inputs, batch.logit_positions, batch.labels, batch.last_positions)
    assert float((say(policy, other) - say(policy, batch)).abs().max()) > 1e-4
    assert (
        float(
            (
                scorer(inputs, batch.last_positions) - scorer(batch.inputs, batch.last_positions)
            ).abs()
        )
        > 1e-4
    )


# what the sampler may draw from


@torch.no_grad()
def test_forbidden_ids_have_no_probability_and_the_others_have_all(
    policy: PolicyModule, encoder: PromptEncoder
) -> None:
    vocabulary = len(encoder.tokenizer)
    batch = batch_of(encoder, [0])
    every = torch.arange(vocabulary)[None]
    first = batch.logit_positions[:, :1].expand(-1, vocabulary)
    probability = policy(batch.inputs, first, every).exp()[0]
    assert encoder.image_token_id in policy.forbidden
    assert encoder.tokenizer.eos_token_id not in policy.forbidden
    assert probability[list(policy.forbidden)].tolist() == [0.0] * len(policy.forbidden)
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-5)
    allowed = [i for i in range(vocabulary) if i not in policy.forbidden]
    assert bool((probability[allowed] > 0).all())


# where a score is read


def test_an_end_score_reads_nothing_behind_its_end(
    scorer: ScorerModule, encoder: PromptEncoder
) -> None:
    """Unlike padding, the tokens behind the end are attended to by whatever comes later."""
    batch = batch_of(encoder, [2])
    end = int(batch.last_positions) - 3
    ends = torch.tensor([[end]])
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = scorer.trunk.get_input_embeddings().register_forward_hook(keep)
    score = scorer(batch.inputs, ends)
    score.sum().backward()
    handle.remove()
    gradients(scorer)
    assert seen[0].grad is not None
    reached = seen[0].grad[0].abs().sum(-1)
    assert bool((reached[end + 1 :] == 0).all())
    assert float(reached[end]) > 0
    assert float(reached[0]) > 0

    ids = batch.inputs["input_ids"].clone()
    ids[0, end + 1 :] = encoder.response("no")[0]
    assert not torch.equal(ids, batch.inputs["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(scorer(batch.inputs | {"input_ids": ids}, ends), score)
        ids[0, end] = encoder.response("yes")[0]
        changed = scorer(batch.inputs | {"input_ids": ids}, ends)
    assert float((changed - score.detach()).abs()) > 1e-5


# checkpoints


def test_a_scorer_without_a_head_is_refused(tiny: str) -> None:
    with pytest.raises(ModelError, match="has no score head"):
        build_scorer_module(tiny, "float32", new_head=False, seed=0)


def test_a_new_head_is_small_and_follows_its_seed(tiny: str) -> None:
    heads = [
        build_scorer_module(tiny, "float32", new_head=True, seed=seed).head.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0 < float(heads[0].detach().abs().max()) < 0.2


def test_a_head_is_read_back(tiny: str, scorer: ScorerModule, tmp_path: Path) -> None:
    scorer.trunk.save_pretrained(tmp_path)
    save_head(tmp_path, scorer.head.weight)
    loaded = build_scorer_module(str(tmp_path), "float32", new_head=False, seed=9)
    assert torch.equal(loaded.head.weight, scorer.head.weight)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model there \(config\.json is missing\)"):
        load_policy(str(tmp_path), "float32")


def test_a_trunk_is_read_back(tiny: str, scorer: ScorerModule, tmp_path: Path) -> None:
    """From a policy's checkpoint and from a scorer's alike."""
    scorer.trunk.save_pretrained(tmp_path)
    expected = dict(scorer.trunk.named_parameters())
    for folder in (tiny, str(tmp_path)):
        found = dict(load_trunk(folder, "float32").named_parameters())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_missing_weights_are_named(tiny: str, tmp_path: Path) -> None:
    model = load_policy(tiny, "float32")
    state = model.state_dict()
    dropped = next(name for name in state if name.endswith("layers.1.mlp.up_proj.weight"))
    del state[dropped]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"weights are missing.*layers\.1\.mlp\.up_proj\.weight"):
        load_policy(str(tmp_path), "float32")


# freezing


def test_freezing_the_vision_tower(tiny: str) -> None:
    module = build_policy_module(tiny, "float32", ())
    count = freeze(module, ["visual"])
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert count == len(frozen) > 0
    assert all("visual" in name.split(".") for name in frozen)
    assert len(frozen) < len(list(module.parameters()))


def test_a_name_that_freezes_nothing_is_an_error(tiny: str) -> None:
    module = build_policy_module(tiny, "float32", ())
    for name in ("vision_tower", "visua", "layers.0"):  # components, not substrings
        with pytest.raises(ModelError, match=f"named '{name}'"):
            freeze(module, ["visual", name])


# adapters


@pytest.fixture
def adapted(tiny: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vlm = load_policy(tiny, "float32")
        add_lora(vlm, TrainConfig(lora_rank=4, lora_alpha=12.0), seed=0)
    return vlm.eval()


def test_only_adapters_train(adapted: nn.Module) -> None:
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in adapted.named_parameters() if "lora_" in n}
    assert len(trained) == 2 * 4 * 2  # A and B of four projections in two layers
    assert set(lora_scaling(adapted).values()) == {3.0}  # alpha / rank


def test_fresh_adapters_merge_to_the_base_weights(tiny: str, adapted: nn.Module) -> None:
    base = dict(load_policy(tiny, "float32").named_parameters())
    found = dict(merged(adapted.named_parameters(), lora_scaling(adapted)))
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, base[name]), name


def test_a_plain_model_with_merged_weights_says_what_the_adapted_one_says(
    tiny: str, policy: PolicyModule, adapted: nn.Module, encoder: PromptEncoder
) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    scaling = lora_scaling(adapted)
    changed = {tensor.name: tensor.value() for tensor in trained_tensors(adapted)}
    whole = dict(merged(adapted.named_parameters(), scaling))
    assert len(changed) == len(scaling) == 8
    assert all(torch.equal(tensor, whole[name]) for name, tensor in changed.items())

    plain = load_policy(tiny, "float32").eval()
    report = plain.load_state_dict({n: t.detach() for n, t in changed.items()}, strict=False)
    assert report.unexpected_keys == []
    batch = batch_of(encoder, ROWS)
    with torch.no_grad():
        expected = real(say(PolicyModule(adapted, policy.forbidden), batch), encoder)
        found = real(say(PolicyModule(plain, policy.forbidden), batch), encoder)
        start = real(say(policy, batch), encoder)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert float((expected - start).abs().max()) > 1e-2


def test_without_adapters_nothing_is_merged(policy: PolicyModule) -> None:
    given = list(policy.vlm.named_parameters())
    assert lora_scaling(policy.vlm) == {}
    assert merged(given, {}) == given
    trained = trained_tensors(policy.vlm)
    assert [tensor.name for tensor in trained] == [name for name, _ in given]
    assert all(torch.equal(tensor.value(), dict(given)[tensor.name]) for tensor in trained)

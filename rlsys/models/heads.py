"""Modules on a vision-language model: token log-probabilities, and scores from a linear head."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from rlsys.algorithms.logprobs import at_temperature, forbid, token_logprobs
from rlsys.errors import ModelError
from rlsys.models.families.registry import family_of
from rlsys.models.family import PIECES, Family
from rlsys.models.features import FeatureCache, Pixels, encode, joined, tower_digest
from rlsys.models.load import load_head, load_policy, load_trunk
from rlsys.models.packing import Packing, pack, shared_width

NO_TOKEN = -100  # torch's ignore_index

Inputs = dict[str, Any]
"""input_ids, attention_mask, mm_token_type_ids [B, L]; prompt, prompt_tokens [B]: number of each
row's prompt, and its length; pixels: one ``Pixels`` per distinct prompt with images, an empty one
for a language model; image_index [B]: index of each row's prompt among these, -1 for a row without
an image."""

_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")


Encode = Callable[[Sequence[Pixels]], Any]
"""transformers' output of vision tower and projector for all images."""


def run_trunk(
    trunk: Any, inputs: Inputs, positions: Tensor, encode_images: Encode | None = None
) -> Tensor:
    """Last hidden states [B, T, H] at these positions [B, T] of the rows. Each distinct image
    passes the vision tower once, or is what ``encode_images`` makes of it; rows with the same
    prompt share what is computed of it where that is cheaper (``rlsys.models.packing``), to the
    same result.

    A batch without images encodes a blank one with weight zero: all ranks of a group reduce the
    gradients of the same parameters in every step.
    """
    family, pixels, index = family_of(trunk.config), inputs["pixels"], inputs["image_index"]
    text = {key: inputs[key] for key in _TEXT}
    device = text["input_ids"].device
    packing = _packing(trunk.config, inputs)
    if packing is None:
        indices = torch.arange(len(index))[:, None] * text["input_ids"].shape[1] + positions
    else:
        indices, index = packing.flat_indices(positions), index[packing.longest]
    entries = _entries(pixels, index)
    encoded = (encode_images or partial(encode, trunk))(pixels) if pixels[0] else None
    layout = joined(pixels, family.layout, device) if pixels[0] else {}
    if packing is None:
        given: dict[str, Any] = dict(family.inputs(text, layout, entries))
    else:
        given = _packed(family, trunk, text, layout, entries, packing.to(device))
    if entries:
        given["mm_encoder_outputs"] = {"image": family.select(encoded, entries)}
    hidden = trunk(**given, use_cache=False).last_hidden_state
    if encoded is not None and not entries:
        hidden = hidden + 0 * family.unused(encoded)
    return hidden.flatten(0, 1)[indices.to(device)]


def _packing(config: Any, inputs: Inputs) -> Packing | None:
    starts = inputs["prompt_tokens"]
    counts = inputs["attention_mask"].sum(1).cpu() - starts
    width = shared_width(config, inputs["input_ids"].device.type)
    return pack(inputs["prompt"].tolist(), starts.tolist(), counts.tolist(), width)


def _entries(pixels: Sequence[Pixels], index: Tensor) -> list[int]:
    """Of what the vision tower makes of the pixels: those that rows with these prompts [R] hold, in
    order.
    """
    ends = list(accumulate((int(each[PIECES]) for each in pixels if each), initial=0))
    return [n for i in index[index >= 0].tolist() for n in range(ends[i], ends[i + 1])]


def _packed(
    family: Family,
    trunk: Any,
    text: dict[str, Tensor],
    layout: dict[str, Tensor],
    entries: Sequence[int],
    packing: Packing,
) -> dict[str, Any]:
    """Arguments of the base model for packed rows; ``text`` [B, L] is of the plain ones."""
    longest = {key: value[packing.longest] for key, value in text.items()}
    positions = family.positions(trunk, longest, layout, entries)
    packed = {key: value.flatten()[packing.source] for key, value in text.items()}
    return family.inputs(packed, layout, entries) | {
        "attention_mask": packing.masks(trunk.config),
        "position_ids": positions.gather(-1, packing.position.expand(*positions.shape[:-1], -1)),
    }


def to_device(inputs: Inputs, device: Any) -> Inputs:
    """The text; pixels follow where they are encoded, the rest says which rows belong together."""
    return inputs | {key: inputs[key].to(device) for key in _TEXT}


class TrunkModule(nn.Module):
    """What reads hidden states of a vision-language model. cache: of the features of its images,
    used where its vision tower and projector are frozen (None: they are computed every time).
    """

    cache: FeatureCache | None = None
    _encode: Encode | None = None
    _decided = False

    def hidden(self, trunk: Any, inputs: Inputs, positions: Tensor) -> Tensor:
        """As ``run_trunk``."""
        if not self._decided:  # not before the first pass: engines cast, shard and load weights
            tower = None if self.cache is None else tower_digest(trunk)
            if self.cache is not None and tower is not None:
                self._encode = partial(self.cache.features, tower, trunk)
            self._decided = True
        return run_trunk(trunk, to_device(inputs, trunk.device), positions, self._encode)


class PolicyModule(TrunkModule):
    """Log-probabilities of response tokens over the set the sampler may draw from."""

    vlm: Any

    def __init__(self, vlm: Any, forbidden: Sequence[int]) -> None:
        super().__init__()
        self.vlm = vlm
        self.forbidden = tuple(forbidden)

    def forward(
        self, inputs: Inputs, logit_positions: Tensor, labels: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Args: inputs of the VLM; logit_positions [B, T] position that predicts each token; labels
        [B, T] the tokens, NO_TOKEN where a row has none: no logits are computed there;
        temperature: by which logits are divided, as the sampler does.
        Returns: [B, T] fp32, nats, on the CPU; zero where there is no token.
        """
        device = self.vlm.device
        hidden = self.hidden(self.vlm.base_model, inputs, logit_positions)
        rows, steps = (labels != NO_TOKEN).nonzero(as_tuple=True)
        logits = self.vlm.get_output_embeddings()(hidden[rows.to(device), steps.to(device)])
        chosen = labels[rows, steps].to(device)
        allowed = forbid(at_temperature(logits, temperature), self.forbidden)
        logprobs = token_logprobs(allowed, chosen).cpu()
        return torch.zeros(labels.shape).index_put((rows, steps), logprobs)


class ScorerModule(TrunkModule):
    """A trunk with a linear head read at given positions: one output for reward, cost and both
    critics, several for a guard.
    """

    trunk: Any

    def __init__(self, trunk: Any, outputs: int = 1) -> None:
        super().__init__()
        self.trunk = trunk
        size = trunk.config.get_text_config().hidden_size
        self.head = nn.Linear(size, outputs, bias=False, dtype=trunk.dtype)

    def forward(self, inputs: Inputs, positions: Tensor) -> Tensor:
        """Args: positions [B, T] to read. Returns: [B, T], or [B, T, outputs] where there
        are several, fp32, on the CPU.
        """
        return self.head(self.hidden(self.trunk, inputs, positions)).squeeze(-1).float().cpu()


def build_policy_module(folder: str, dtype: str, forbidden: Sequence[int]) -> PolicyModule:
    return PolicyModule(load_policy(folder, dtype), forbidden)


def build_scorer_module(
    folder: str, dtype: str, *, new_head: bool, seed: int, outputs: int = 1, trunk: Any = None
) -> ScorerModule:
    """A scorer from a scorer's checkpoint, or with a fresh small head on a policy's trunk. Args:
    trunk: that of the checkpoint (None: it is loaded).

    Raises: ModelError when ``new_head`` is False and the checkpoint has no head with as many
    outputs: scores of a random head would be meaningless.
    """
    module = ScorerModule(load_trunk(folder, dtype) if trunk is None else trunk, outputs)
    weight = load_head(folder)
    if not new_head and (weight is None or len(weight) != outputs):
        kind = "reward or cost model" if outputs == 1 else "guard"
        head = "no score head" if weight is None else f"a head of {len(weight)} outputs"
        raise ModelError(f"{folder} has {head}; train a {kind} first")
    with torch.no_grad():
        if weight is None or new_head:
            generator = torch.Generator().manual_seed(seed)
            weight = torch.randn(module.head.weight.shape, generator=generator) * 0.02
        module.head.weight.copy_(weight)
    return module


def freeze(module: PolicyModule | ScorerModule, names: Sequence[str]) -> int:
    """Freeze every parameter whose dotted name contains one of ``names`` as a component; vision
    and projector stand for those of the model's family.

    Returns: how many tensors were frozen. Raises: ModelError for a name that matches none.
    """
    family = family_of((module.vlm if isinstance(module, PolicyModule) else module.trunk).config)
    count = 0
    for name in names:
        wanted = set(family.parameters(name))
        hits = [p for n, p in module.named_parameters() if wanted & set(n.split("."))]
        if not hits:
            raise ModelError(f"freeze: no parameter has a component named {name!r}")
        for parameter in hits:
            parameter.requires_grad_(False)
        count += len(hits)
    return count


def checkpoint_activations(module: nn.Module) -> None:
    """Keep one activation per layer of a training pass (arXiv 1604.06174)."""
    model: Any = module.vlm if isinstance(module, PolicyModule) else module.trunk
    model.gradient_checkpointing_enable({"use_reentrant": False})


def freeze_unread(module: PolicyModule) -> None:
    """Freeze what no forward pass reads: it has no gradient, and the engine cannot take it."""
    pattern = family_of(module.vlm.config).unread(module.vlm.config)
    for name, parameter in module.vlm.named_parameters():
        if pattern and re.fullmatch(pattern, name):
            parameter.requires_grad_(False)

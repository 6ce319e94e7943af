"""Parameters and shapes of a model from its configuration alone: nothing is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlsys.config.schema import TrainConfig
from rlsys.models.adapters import add_lora
from rlsys.models.families.registry import family_of
from rlsys.models.heads import PolicyModule, ScorerModule, freeze, freeze_unread
from rlsys.models.outline import outline
from rlsys.models.packing import shared_width


def torch_dtype(name: str) -> torch.dtype:
    """By the name that a recipe has for it."""
    found: torch.dtype = getattr(torch, name)
    return found


PARTS = ("vision", "projector", "language", "head")
"""head: of scores, or the language model's where it is not tied to the embedding."""


@dataclass(frozen=True)
class Part:
    """Parameters of a part of a model, and how many of them are trained."""

    name: str
    total: int
    trained: int


@dataclass(frozen=True)
class Shape:
    """Sizes that decide about activations and the KV cache. query, key_value: width of all heads;
    tower_*: of the vision tower, 0 without one; patches: of the tower per visual token; shared:
    hidden size where answers share the computation of their prompt, else 0.
    """

    hidden: int
    layers: int
    intermediate: int
    query: int
    key_value: int
    vocab: int
    tower_hidden: int = 0
    tower_layers: int = 0
    tower_intermediate: int = 0
    patches: int = 0
    shared: int = 0


@dataclass(frozen=True)
class Model:
    """A role's model. largest: parameters of its largest tensor."""

    parts: tuple[Part, ...]
    largest: int
    shape: Shape

    @property
    def total(self) -> int:
        return sum(part.total for part in self.parts)

    @property
    def trained(self) -> int:
        return sum(part.trained for part in self.parts)

    def trains(self, part: str) -> bool:
        return any(each.trained for each in self.parts if each.name == part)

    def count(self, part: str) -> int:
        return sum(each.total for each in self.parts if each.name == part)


def describe(config: Any, *, scorer: bool, outputs: int = 1, train: TrainConfig | None) -> Model:
    """A model as a role holds it. Args: config: of transformers; scorer: a trunk with a head of as
    many ``outputs``, else a policy; train: None for a frozen role.
    """
    chosen = None if train is None else (train.lora_rank, *train.lora_targets, "", *train.freeze)
    key = (config.to_json_string(), scorer, outputs, chosen)
    if key not in _described:
        _described[key] = _describe(config, scorer, outputs, train)
    return _described[key]


_described: dict[Any, Model] = {}


def _describe(config: Any, scorer: bool, outputs: int, train: TrainConfig | None) -> Model:
    module = outline(config, scorer=scorer, outputs=outputs)
    with torch.device("meta"):
        if train is None:
            module.requires_grad_(False)
        elif train.lora_rank:
            trunk = module.trunk if isinstance(module, ScorerModule) else module.vlm
            add_lora(trunk, train, seed=0)
        elif train.freeze:
            freeze(module, train.freeze)
        if train is not None and isinstance(module, PolicyModule):
            freeze_unread(module)
    sizes = [parameter.numel() for parameter in module.parameters()]
    return Model(_parts(module, config), max(sizes), shape_of(config))


def shape_of(config: Any) -> Shape:
    """Raises: ModelError for a family that cannot be run."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    tower = getattr(config, "vision_config", None) if family_of(config).vision else None
    return Shape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        intermediate=text.intermediate_size,
        query=heads * width,
        key_value=groups * width,
        vocab=text.vocab_size,
        shared=shared_width(config, "cuda"),
        **({} if tower is None else _tower(tower)),
    )


def _tower(vision: Any) -> dict[str, int]:
    hidden = _first(vision, "embed_dim", "hidden_size")  # Qwen2-VL's hidden_size is the projector's
    wide = getattr(vision, "intermediate_size", None) or int(hidden * vision.mlp_ratio)
    return {
        "tower_hidden": hidden,
        "tower_layers": _first(vision, "depth", "num_hidden_layers"),
        "tower_intermediate": wide,
        "patches": getattr(vision, "spatial_merge_size", 1) ** 2,
    }


def _first(config: Any, *names: str) -> int:
    return int(next(getattr(config, name) for name in names if getattr(config, name, None)))


def _parts(module: nn.Module, config: Any) -> tuple[Part, ...]:
    family = family_of(config)
    found = {name: [0, 0] for name in PARTS}
    for name, parameter in module.named_parameters():
        pieces = set(name.split("."))
        part = "language"
        if pieces & set(family.vision):
            part = "vision"
        elif pieces & set(family.projector):
            part = "projector"
        elif re.match(r"head\.|(.*\.)?lm_head\.", name):
            part = "head"
        found[part][0] += parameter.numel()
        found[part][1] += parameter.numel() if parameter.requires_grad else 0
    return tuple(Part(name, *counts) for name, counts in found.items())

"""What frozen vision towers make of images, computed once for all roles with the same tower."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rlsys.bounded_cache import BoundedCache
from rlsys.models.families.registry import family_of
from rlsys.models.family import Features


class Pixels(dict[str, Tensor]):
    """What the vision tower reads of one prompt's images, as of ``Family.pixels``."""

    @cached_property
    def digest(self) -> bytes:
        """Of names, shapes and contents."""
        found = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            found.update(_bytes(tensor))
        return found.digest()


def joined(pixels: Sequence[Pixels], names: Iterable[str], device: Any) -> dict[str, Tensor]:
    """These tensors of several prompts, behind each other."""
    return {name: torch.cat([each[name] for each in pixels]).to(device) for name in names}


def encode(trunk: Any, pixels: Sequence[Pixels]) -> Any:
    """transformers' output of vision tower and projector for all images at once."""
    return family_of(trunk.config).encode(trunk, joined(pixels, pixels[0], trunk.device))


class FeatureCache(BoundedCache[Any]):
    """Features of one prompt's images, by tower and pixels, in the memory of the host.

    A prompt's images are encoded by themselves, so that their features do not depend on which
    others are known already: a resumed run computes the same bits.
    """

    @torch.no_grad()
    def features(self, tower: bytes, trunk: Any, pixels: Sequence[Pixels]) -> Any:
        """As ``encode``. Args: tower: of ``tower_digest``."""
        family, device = family_of(trunk.config), trunk.device
        parts = []
        for each in pixels:
            part = self.get((tower, each.digest))
            if part is None:
                found = family.features(encode(trunk, [each]))
                part = {name: _at(value, "cpu") for name, value in found.items()}
                self.put((tower, each.digest), part, sum(map(_size, part.values())))
            parts.append(part)
        together = {name: _join([part[name] for part in parts]) for name in parts[0]}
        return family.from_features({name: _at(v, device) for name, v in together.items()})


def tower_digest(trunk: Any) -> bytes | None:
    """Of everything that decides what vision tower and projector make of pixels; None where that
    may change (a parameter trains), is drawn (dropout) or is not all in this process (ZeRO-3: a
    forward pass is collective).
    """
    family, config = family_of(trunk.config), trunk.config
    names = {*family.vision, *family.projector}
    tower = [(n, p) for n, p in trunk.named_parameters() if names & set(n.split("."))]
    unfit = any(p.requires_grad or hasattr(p, "ds_id") for _, p in tower)
    if not tower or unfit or _drops(config):
        return None
    found = hashlib.blake2b(digest_size=16)
    settings = [type(trunk).__name__, config.vision_config.to_dict()]
    found.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, parameter in sorted(tower):
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} ".encode())
        found.update(_bytes(parameter.detach()))
    return found.digest()


def _drops(config: Any) -> bool:
    vision = config.vision_config.to_dict()
    return any("dropout" in name and value for name, value in vision.items())


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()


def _at(value: Features, device: Any) -> Features:
    return value.to(device) if isinstance(value, Tensor) else [each.to(device) for each in value]


def _size(value: Features) -> int:
    return value.nbytes if isinstance(value, Tensor) else sum(each.nbytes for each in value)


def _join(values: Sequence[Any]) -> Features:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return [image for value in values for image in value]

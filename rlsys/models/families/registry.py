"""The only list of model families."""

from __future__ import annotations

from typing import Any

from rlsys.errors import ModelError
from rlsys.models.families.gemma3 import Gemma3
from rlsys.models.families.idefics3 import Idefics3, SmolVLM
from rlsys.models.families.internvl import InternVL
from rlsys.models.families.llava import Llava
from rlsys.models.families.llava_next import LlavaNext, LlavaOneVision
from rlsys.models.families.qwen2_vl import Qwen2VL, Qwen25VL
from rlsys.models.families.qwen3_vl import Qwen3VL
from rlsys.models.families.text import Text
from rlsys.models.family import Family
from rlsys.registries import by_name

FAMILIES: tuple[Family, ...] = (
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
    Llava(),
    LlavaNext(),
    LlavaOneVision(),
    InternVL(),
    Idefics3(),
    SmolVLM(),
    Gemma3(),
    Text(),
)

# Why a well-known model type cannot be run.
REFUSED = {
    "mllama": "its pictures enter through cross attention, which vLLM no longer runs",
    "internvl_chat": "it needs remote code; convert it to transformers' own class (InternVL3-*-hf)",
}

_BY_TYPE = by_name("model type", ((each, fam) for fam in FAMILIES for each in fam.model_types))
_BY_PROCESSOR = by_name("processor", ((family.processor, family) for family in FAMILIES))


def family_of_type(model_type: str) -> Family:
    """The family of a configuration's ``model_type``. Raises: ModelError, saying why."""
    if model_type not in _BY_TYPE:
        why = REFUSED.get(model_type, "it is none of the families that can be run")
        raise ModelError(
            f"a model of type {model_type!r} cannot be used: {why}; there are "
            f"{', '.join(sorted(_BY_TYPE))}"
        )
    return _BY_TYPE[model_type]


def family_of(config: Any) -> Family:
    """The family of a transformers configuration. Raises: ModelError."""
    return family_of_type(str(config.model_type))


def family_of_processor(processor: Any) -> Family:
    """Raises: ModelError."""
    name = type(processor).__name__
    if name not in _BY_PROCESSOR:
        raise ModelError(f"{name} is the processor of no model family that can be run")
    return _BY_PROCESSOR[name]

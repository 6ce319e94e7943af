"""LoRA through PEFT, injected in place so that class and parameter names of the model stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlsys.config.schema import TrainConfig
from rlsys.errors import ModelError
from rlsys.models.families.registry import family_of

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer"


def add_lora(model: Any, train: TrainConfig, seed: int) -> None:
    """Adapters on ``train.lora_targets`` of the language model; everything else in ``model`` is
    frozen (LoRA, arXiv 2106.09685). Args: seed: of their initialisation, the same
    whatever ran in the process before. Raises: ModelError for a name that matches no module.
    """
    from peft import LoraConfig, inject_adapter_in_model

    check_targets(model, train.lora_targets)
    config = LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,
        target_modules=list(train.lora_targets),
        exclude_modules=family_of(model.config).outside_language(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def check_targets(model: Any, targets: Sequence[str]) -> None:
    """Raises: ModelError for a name of ``lora_targets`` that no module of the language model has,
    in full or as the last components.
    """
    outside = re.compile(family_of(model.config).outside_language() or r"(?!)")
    inside = [f".{name}" for name, _ in model.named_modules() if not outside.fullmatch(name)]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in inside):
            raise ModelError(
                f"lora_targets: no module of the language model has the name {target!r}"
            )


def lora_scaling(model: nn.Module) -> dict[str, float]:
    """Dotted module name -> alpha / rank, of every adapted layer."""
    return {
        name: float(module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }


@dataclass(frozen=True)
class TrainedTensor:
    """A tensor of the checkpoint that training changes, as live parameters make it.

    parameters: the tensor itself, or base weight, A and B of an adapted layer.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    scaling: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor, also while ZeRO-3 keeps its shards apart."""
        base = self.parameters[0]
        return torch.Size(getattr(base, "ds_shape", base.shape))

    def value(self) -> Tensor:
        """The whole tensor; the parameters must be gathered."""
        base, *adapter = (parameter.detach() for parameter in self.parameters)
        return _merge(base, adapter[0], adapter[1], self.scaling) if adapter else base


def trained_tensors(model: nn.Module) -> list[TrainedTensor]:
    """Every tensor that training changes, by its name without adapters."""
    scaling, table = lora_scaling(model), dict(model.named_parameters())
    result = []
    for name, parameter in table.items():
        layer = name.removesuffix(_BASE + ".weight")
        if layer != name and layer in scaling:
            parts = (parameter, table[layer + _A], table[layer + _B])
            result.append(TrainedTensor(layer + ".weight", parts, scaling[layer]))
        elif parameter.requires_grad and not name.endswith((_A, _B)):
            result.append(TrainedTensor(name, (parameter,)))
    return result


def _merge(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + scaling * B A, rounded once."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scaling).to(weight.dtype)


def merged(
    params: Iterable[tuple[str, Tensor]], scaling: dict[str, float]
) -> list[tuple[str, Tensor]]:
    """Checkpoint names and whole tensors: W + scaling * B A where a layer is adapted (LoRA, arXiv
    2106.09685, eq. 3).

    Args: params by their live names; scaling from ``lora_scaling`` (empty: no adapters).
    """
    table = dict(params)
    result = []
    for name, tensor in table.items():
        if name.endswith((_A, _B)):
            continue
        layer = name.removesuffix(".weight").removesuffix(_BASE)
        if name.endswith(_BASE + ".weight") and layer in scaling:
            tensor = _merge(tensor, table[layer + _A], table[layer + _B], scaling[layer])
        result.append((name.replace(_BASE, "") if scaling else name, tensor))
    return result

"""LoRA through PEFT, injected in place so that class and parameter names of the model stay."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlsys.config.schema import TrainConfig
from rlsys.errors import ModelError
from rlsys.models.families.registry import family_of

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer"
ADAPTER = "adapter"
"""Folder of the adapter alone in a checkpoint whose weights have it merged."""
_SAVED, _PEFT, _WEIGHTS = "saved", "base_model.model.", "adapter_model.safetensors"


def add_lora(model: Any, train: TrainConfig, seed: int) -> None:
    """Adapters on ``train.lora_targets`` of the language model (LoRA, arXiv 2106.09685); everything
    else in ``model`` is frozen, also an adapter that it has already. Args: seed: of their
    initialisation, the same whatever ran in the process before. Raises: ModelError for a name
    that matches no module.
    """
    from peft import LoraConfig, inject_adapter_in_model

    check_targets(model, train.lora_targets)
    config = LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,
        target_modules=list(train.lora_targets),
        exclude_modules=family_of(model.config).outside_language(),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of a saved adapter
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for module in model.modules():
        if _SAVED in getattr(module, "lora_A", ()):
            module.set_adapter([_SAVED, "default"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_of(name, "default"))


def save_adapter(folder: Path, model: Any, state: Mapping[str, Tensor], base: str) -> None:
    """What training adds to a base model, in PEFT's format in ``folder/adapter``. Args: state: of
    the adapted model by live names; base: digest of the base model.
    """
    config = model.peft_config["default"]
    config.save_pretrained(folder / ADAPTER)
    tensors = {
        f"{_PEFT}{name.replace('.default.', '.')}": tensor.contiguous()
        for name, tensor in state.items()
        if name.endswith((_A, _B))
    }
    save_file(tensors, folder / ADAPTER / _WEIGHTS, {"format": "pt", "base": base})


def adapter_base(folder: str) -> str | None:
    """Digest of the model that the adapter of a checkpoint belongs to, None without an adapter."""
    path = Path(folder) / ADAPTER / _WEIGHTS
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("base")


def add_saved_adapter(model: Any, folder: str) -> None:
    """The frozen adapter of a checkpoint, beside which ``add_lora`` may put another one.
    Raises: ModelError when it is not one of this model's.
    """
    from peft import LoraConfig, inject_adapter_in_model

    path = Path(folder) / ADAPTER
    inject_adapter_in_model(LoraConfig.from_pretrained(path), model, adapter_name=_SAVED)
    model.requires_grad_(False)
    live = {name: each for name, each in model.named_parameters() if _is_of(name, _SAVED)}
    saved = load_file(path / _WEIGHTS)
    names = {name: f"{_PEFT}{name.replace(f'.{_SAVED}.', '.')}" for name in live}
    if sorted(names.values()) != sorted(saved):
        raise ModelError(f"{path}: an adapter of other layers than the model has")
    for name, parameter in live.items():
        parameter.data.copy_(saved[names[name]])


def _is_of(name: str, adapter: str) -> bool:
    """Whether a parameter is one of an adapter's."""
    return name.endswith((f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight"))


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
        if hasattr(module, "base_layer") and "default" in getattr(module, "lora_A", ())
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

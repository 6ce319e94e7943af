"""The part of a module that a checkpoint of its training holds: frozen weights are those of the
model it started from.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from rlsys.errors import ModelError


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Of the parameters that require gradients, by name."""
    return {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}


def load_trained(src: Mapping[str, Tensor], dst: nn.Module) -> None:
    """Load such a state. Raises: ModelError when a trained parameter is missing
    or one is unknown.
    """
    missing, unknown = dst.load_state_dict(src, strict=False)
    lost = [name for name in missing if name in trained_state(dst)]
    if lost or unknown:
        problem = f"lacks {lost[0]}" if lost else f"has {unknown[0]}, which the model has not"
        raise ModelError(f"the state of the training {problem}")

"""One frozen model in memory, held by several roles of a process: each with a head, or with
adapters, of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

from rlsys.models.load import load_policy


@dataclass(frozen=True)
class Base:
    """A model that others are adapters of. digest: of its contents."""

    folder: str
    digest: str


class SharedModels:
    """The frozen models of a process. A model is freed with the last role that holds it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._models: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()

    def model(self, folder: str, dtype: str) -> Any:
        """A model whose modules are its own, so that adapters can be put into them, and whose
        weights are those of all others from this folder, once in memory. They are frozen. Raises:
        ModelError.
        """
        return _with_same_weights(self._base(folder, dtype), lambda base: base)

    def trunk(self, folder: str, dtype: str) -> Any:
        """As ``model``, without the language-model head."""
        return _with_same_weights(self._base(folder, dtype), lambda base: base.base_model)

    def _base(self, folder: str, dtype: str) -> Any:
        base = self._models.get((folder, dtype))
        if base is None:
            base = load_policy(folder, dtype).to(self.device).requires_grad_(False)
            self._models[folder, dtype] = base
        return base


def _with_same_weights(base: Any, part: Callable[[Any], Any]) -> Any:
    """A copy of a part of the base, save its tensors."""
    tensors = {id(each): each for each in chain(base.parameters(), base.buffers())}
    own = copy.deepcopy(part(base), tensors)
    own.shared_base = [base]  # in a list, which torch does not take for a submodule
    return own

"""The reference policy: log-probabilities under frozen weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from rlsys.batch import Rollouts
from rlsys.config.schema import WHOLE
from rlsys.data.collate import Collated
from rlsys.data.encoder import PromptEncoder
from rlsys.models.heads import PolicyModule
from rlsys.models.load import forbidden_ids, load_policy
from rlsys.models.shared import SharedModels
from rlsys.roles.factory import RowSource, WorkerContext, WorkerFactory
from rlsys.roles.forward import forward_rollouts, merge_rows
from rlsys.roles.role import Role
from rlsys.runtime.group import RoleHandle
from rlsys.runtime.pending import Pending

ROLE = Role("reference", "the frozen start policy")


class Reference(Protocol):
    """The frozen policy, as a driver sees it."""

    def logprobs(self, rollouts: Rollouts) -> Pending[Tensor]:
        """[B, T] log-probabilities of the response tokens, nats, at the rollouts' temperature."""
        ...


@dataclass(frozen=True)
class ReferenceSpec:
    """model: folder; token_budget: padded tokens per forward pass; frozen: as the key."""

    model: str
    data: RowSource
    dtype: str
    token_budget: int
    frozen: str = WHOLE

    def build(self, factory: WorkerFactory) -> ReferenceWorker:
        context = factory.context(self.model, self.data, self.token_budget)
        models = factory.models if self.frozen == WHOLE else None
        module = sampled_policy(self.model, self.dtype, context.encoder, models)
        return ReferenceWorker(context.frozen(module, self.frozen), context)


def sampled_policy(
    folder: str, dtype: str, encoder: PromptEncoder, models: SharedModels | None = None
) -> PolicyModule:
    """A policy whose log-probabilities are over the tokens that the engines may sample. Args:
    models: that it shares its frozen weights with (None: it has weights of its own).
    """
    vlm = load_policy(folder, dtype) if models is None else models.model(folder, dtype)
    module = PolicyModule(vlm, ())
    module.forbidden = tuple(forbidden_ids(encoder.processor, module.vlm.config))
    return module


class ReferenceWorker:
    """The reference policy on one rank."""

    def __init__(self, module: nn.Module, context: WorkerContext) -> None:
        self.module, self.context = module, context
        module.eval()  # DeepSpeed's returns nothing

    def logprobs(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        """This rank's rows and their [.., T] log-probabilities."""
        temperature = rollouts.temperature
        return forward_rollouts(
            self.context, rollouts, lambda batch: self._forward(batch, temperature)
        )

    def _forward(self, batch: Collated, temperature: float = 1.0) -> Tensor:
        logprobs: Tensor = self.module(
            batch.inputs, batch.logit_positions, batch.labels, temperature
        )
        return logprobs


class ReferenceHandle(RoleHandle[ReferenceSpec]):
    """Implements ``Reference``."""

    def logprobs(self, rollouts: Rollouts) -> Pending[Tensor]:
        return self._all(ReferenceWorker.logprobs, rollouts).map(merge_rows)

"""The clipped policy loss of rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlsys.algorithms.kl import k3
from rlsys.algorithms.masked import aggregate, masked_sum
from rlsys.algorithms.policy_loss import ppo_clip
from rlsys.batch import PolicyBatch
from rlsys.config.updates import UpdateConfig
from rlsys.data.collate import Collated
from rlsys.data.encoder import PromptEncoder
from rlsys.roles.forward import collate_rollouts
from rlsys.runtime.pending import Metrics


@dataclass(frozen=True)
class ClippedLoss:
    """Of one optimiser step, as a ``MicroLoss``.

    rows: of the batch in this step; steps: in the whole update, over which metrics are means;
    logprobs: of the labels [B, T] at the rollouts' temperature, nats; seen: rows of this rank and
    their log-probabilities before the step, filled where the batch has no old ones.
    """

    encoder: PromptEncoder
    batch: PolicyBatch
    update: UpdateConfig
    rows: Sequence[int]
    steps: int
    logprobs: Callable[[Collated, float], Tensor]
    seen: list[tuple[list[int], Tensor]] = field(default_factory=list)

    def __call__(self, micro: list[int], is_real: bool) -> tuple[Tensor, Metrics]:
        batch, update, rollouts = self.batch, self.update, self.batch.rollouts
        inputs = collate_rollouts(self.encoder, rollouts, micro)
        mask = rollouts.mask[micro] & is_real
        logprobs = self.logprobs(inputs, rollouts.temperature).masked_fill(~mask, 0.0)
        if batch.old_logprobs is None:
            old = logprobs.detach()
            if is_real:
                self.seen.append((micro, old))
        else:
            old = batch.old_logprobs[micro].masked_fill(~mask, 0.0)
        advantages = batch.advantages[micro].masked_fill(~mask, 0.0)
        losses, clipped = ppo_clip(logprobs, old, advantages, clip=update.policy_clip)
        if batch.reference_logprobs is not None and batch.kl_beta:
            reference = batch.reference_logprobs[micro].masked_fill(~mask, 0.0)
            losses = losses + batch.kl_beta * k3(logprobs, reference)
        tokens = int(rollouts.lengths[list(self.rows)].sum())
        loss = aggregate(
            losses,
            mask,
            form=update.loss_form,
            global_tokens=tokens,
            global_sequences=len(self.rows),
        )
        whole = tokens * self.steps
        return loss, {
            "loss": float(loss.detach()) / self.steps,
            "clip_fraction": float(masked_sum(clipped.float(), mask) / whole),
            "update_kl": float(masked_sum(k3(old, logprobs.detach()), mask) / whole),
        }

    def old(self) -> tuple[list[int], Tensor]:
        """This rank's rows and their log-probabilities before the step."""
        rows = [row for micro, _ in self.seen for row in micro]
        return rows, torch.cat([old for _, old in self.seen]) if rows else torch.empty(0)

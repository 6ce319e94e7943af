"""The trained policy: PPO and DPO updates, supervised steps, weight publication, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlsys.algorithms.masked import length_mask
from rlsys.algorithms.preference import dpo_loss, implicit_rewards
from rlsys.batch import PolicyBatch, PreferencePairs, Rollouts, step_rows
from rlsys.config.updates import UpdateConfig
from rlsys.data.collate import Collated, collate
from rlsys.data.encoder import PromptEncoder
from rlsys.engines.publishing import publish
from rlsys.engines.weights import WeightUpdate
from rlsys.micro_batches import Tokens
from rlsys.models.adapters import add_lora, lora_scaling, merged, trained_tensors
from rlsys.models.heads import PolicyModule, freeze, freeze_unread
from rlsys.models.load import checkpoint_names
from rlsys.roles.clipped import ClippedLoss
from rlsys.roles.factory import RowSource, WorkerContext, WorkerFactory
from rlsys.roles.forward import forward_rollouts, merge_rows
from rlsys.roles.imitation import imitation
from rlsys.roles.reference import Reference, sampled_policy
from rlsys.roles.role import Role
from rlsys.roles.trained import Stats, TrainedHandle, TrainedWorker, Training, merge_stats
from rlsys.runtime.group import RankGroup
from rlsys.runtime.pending import Metrics, Pending

ROLE = Role("policy", "the policy in training: DeepSpeed ZeRO 0-3, full or LoRA")


class Publisher(Protocol):
    """A policy that publishes its weights to the rollout engines."""

    def publish(self, version: int) -> Pending[WeightUpdate]:
        """Make the current weights readable by the engines under ``version``."""
        ...


class Policy(Reference, Publisher, Protocol):
    """The trained policy, as drivers see it."""

    def update(self, batch: PolicyBatch) -> Pending[Metrics]:
        """Epochs of clipped policy gradients over the batch."""
        ...

    def update_once(self, batch: PolicyBatch) -> Pending[tuple[Metrics, Tensor]]:
        """One step on the whole batch, which needs no ``old_logprobs``. Returns: metrics, and the
        log-probabilities [B, T] before the step.
        """
        ...


class PreferenceLearner(Protocol):
    """A policy trained on preference pairs."""

    def pair_logprobs(self, pairs: PreferencePairs) -> Pending[Tensor]:
        """[P, 2] summed log-probabilities of chosen and rejected, nats."""
        ...

    def dpo_step(self, pairs: PreferencePairs, beta: float) -> Pending[Metrics]: ...


@dataclass(frozen=True)
class PolicySpec:
    """model: folder of the start policy; demonstrations: imitated beside the rollouts (PTX)."""

    model: str
    data: RowSource
    dtype: str
    training: Training
    demonstrations: RowSource | None = None

    def build(self, factory: WorkerFactory) -> PolicyWorker:
        context = factory.context(self.model, self.data, self.training.train.micro_batch_tokens)
        models = factory.models if self.training.train.shares_base else None
        module = sampled_policy(self.model, self.dtype, context.encoder, models)
        shown = None
        if self.demonstrations is not None:
            shown = factory.encoder(self.model, self.demonstrations)
        return PolicyWorker(module.to(factory.device), context, self.training, shown)


class PolicyWorker(TrainedWorker):
    """The trained policy: PPO updates, supervised steps, weight publication, checkpoints."""

    def __init__(
        self,
        module: PolicyModule,
        context: WorkerContext,
        training: Training,
        demonstrations: PromptEncoder | None = None,
    ) -> None:
        self._names = checkpoint_names(module.vlm)
        if training.train.lora_rank:
            add_lora(module.vlm, training.train, training.seed)
        elif training.train.freeze:
            freeze(module, training.train.freeze)
        freeze_unread(module)
        super().__init__(module, context, training)
        self.module, self.demonstrations = module, demonstrations
        self._scaling = lora_scaling(module.vlm)

    def _forward(self, batch: Collated, temperature: float = 1.0) -> Tensor:
        return self.engine.forward(batch.inputs, batch.logit_positions, batch.labels, temperature)

    def logprobs(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        """This rank's rows and their [.., T] log-probabilities under the current weights."""
        temperature = rollouts.temperature
        return forward_rollouts(
            self.context, rollouts, lambda batch: self._forward(batch, temperature)
        )

    def update(self, batch: PolicyBatch, update: UpdateConfig) -> Stats:
        """Epochs of clipped policy gradients over the batch."""
        rollouts = batch.rollouts
        steps = step_rows(len(rollouts), update.minibatch, update.epochs, batch.shuffle_seed)
        stats = Stats()
        for number, rows in enumerate(steps):
            if batch.demonstrations:
                shown, share = batch.demonstrations[number], 1 / len(steps)
                self._imitate(shown, batch, update.loss_form, share, stats)
            self._clipped_step(batch, update, rows, len(steps), stats)
        return stats

    def update_once(
        self, batch: PolicyBatch, update: UpdateConfig
    ) -> tuple[Stats, tuple[list[int], Tensor]]:
        """One step on all rows, whose old log-probabilities are those of its own first pass: also
        this rank's rows with them.
        """
        stats, rows = Stats(), range(len(batch.rollouts))
        return stats, self._clipped_step(batch, update, rows, 1, stats).old()

    def _clipped_step(
        self,
        batch: PolicyBatch,
        update: UpdateConfig,
        rows: Sequence[int],
        steps: int,
        stats: Stats,
    ) -> ClippedLoss:
        encoder = self.context.encoder
        loss = ClippedLoss(encoder, batch, update, rows, steps, self._forward)
        self.train_step(self.plan(rows, batch.rollouts.tokens), rows[0], loss, stats)
        return loss

    def sft_step(self, rows: Sequence[int], loss_form: str) -> Stats:
        """One supervised step: cross-entropy of the rows' answers, response tokens only."""
        lengths, loss = imitation(self.context.encoder, rows, loss_form, self._forward)
        stats = Stats()
        self.train_step(self.plan(range(len(rows)), lengths), 0, loss, stats)
        return stats

    def _imitate(
        self, rows: Sequence[int], batch: PolicyBatch, loss_form: str, share: float, stats: Stats
    ) -> None:
        """Adds PTX's gradient to that of the coming step (InstructGPT, arXiv 2203.02155, eq. 2).
        Args: share: of this step in the metric.
        """
        if self.demonstrations is None:
            raise ValueError("the policy was built without demonstrations")
        lengths, imitated = imitation(self.demonstrations, rows, loss_form, self._forward)

        def micro_loss(micro: list[int], is_real: bool) -> tuple[Tensor, Metrics]:
            loss, shares = imitated(micro, is_real)
            return batch.ptx_coef * loss, {"ptx_loss": share * shares["loss"]}

        plan = self.plan(range(len(rows)), lengths)
        if not batch.ptx_measured:
            self.accumulate(plan, 0, micro_loss, stats)
            return
        with self.engine.measured() as gradients:
            self.accumulate(plan, 0, micro_loss, stats)
        stats.common["ptx_grad_norm"] = gradients.norm()

    @torch.no_grad()
    def pair_logprobs(self, pairs: PreferencePairs) -> tuple[list[int], Tensor]:
        """This rank's pairs and the summed log-probabilities [.., 2] of chosen and rejected."""
        mine: list[int] = []
        results: list[Tensor] = []
        for micro in self.plan(range(len(pairs)), self._pair_tokens(pairs)):
            sums = self._pair_sums(pairs, micro or [0])
            if micro:
                mine += micro
                results.append(sums)
        return mine, torch.cat(results) if results else torch.empty(0)

    def dpo_step(self, pairs: PreferencePairs, beta: float) -> Stats:
        """One optimiser step of DPO on pairs with reference log-probabilities."""
        stats, reference = Stats(), pairs.reference
        if reference is None:
            raise ValueError("DPO needs the reference's log-probabilities")

        def micro_loss(micro: list[int], is_real: bool) -> tuple[Tensor, Metrics]:
            sums, weight = self._pair_sums(pairs, micro), float(is_real) / len(pairs)
            losses = dpo_loss(*sums.T, *reference[micro].T, beta=beta)
            rewards = implicit_rewards(sums.detach(), reference[micro], beta=beta)
            margins = rewards[:, 0] - rewards[:, 1]
            return losses.sum() * weight, {
                "loss": float(losses.detach().sum()) * weight,
                "accuracy": float((margins > 0).sum()) * weight,
                "margin": float(margins.sum()) * weight,
            }

        plan = self.plan(range(len(pairs)), self._pair_tokens(pairs))
        self.train_step(plan, 0, micro_loss, stats)
        return stats

    def _pair_tokens(self, pairs: PreferencePairs) -> list[Tokens]:
        index = pairs.prompt_index.tolist()
        starts = self.context.encoder.lengths(index)
        sides = zip(index, starts, pairs.chosen, pairs.rejected, strict=True)
        return [Tokens(row, start, (len(c), len(r))) for row, start, c, r in sides]

    def _pair_sums(self, pairs: PreferencePairs, micro: list[int]) -> Tensor:
        """[M, 2] summed log-probabilities; both answers to a prompt share it."""
        answers = [side[i] for i in micro for side in (pairs.chosen, pairs.rejected)]
        index = [int(pairs.prompt_index[i]) for i in micro for _ in range(2)]
        batch = collate(self.context.encoder, index, None, answers)
        lengths = torch.tensor([len(answer) for answer in answers])
        mask = length_mask(lengths, batch.labels.shape[1])
        return self._forward(batch).masked_fill(~mask, 0.0).sum(-1).reshape(len(micro), 2)

    def publish(self, version: int, transport: str) -> WeightUpdate | None:
        """Publish the trained tensors, unsharded, by their names in a checkpoint; rank 0 writes.
        Collective.
        """
        writer = None if self.context.rank.rank else self.context.writer(transport)
        tensors = [
            replace(tensor, name=self._names[tensor.name])
            for tensor in trained_tensors(self.module.vlm)
        ]
        return publish(version, tensors, self.engine.gathered, transport, writer)

    def save_model(self, folder: Path) -> None:
        """A checkpoint transformers and vLLM load, adapters merged. Collective."""
        named = [
            (name.removeprefix("vlm."), tensor.clone())
            for name, tensor in self.engine.full_params()
            if self.context.rank.rank == 0
        ]
        if named:
            state = dict(merged(named, self._scaling))
            self.module.vlm.save_pretrained(folder, state_dict=state)
            self.context.encoder.processor.save_pretrained(folder)


class PolicyHandle(TrainedHandle[PolicySpec]):
    """Implements ``Policy`` and ``PreferenceLearner``. transport: how weights reach the engines,
    called at every publication.
    """

    def __init__(
        self,
        group: RankGroup,
        transport: Callable[[], str] | None = None,
        update: UpdateConfig | None = None,
    ) -> None:
        super().__init__(group, ROLE.name)
        self.transport, self.settings = transport, update or UpdateConfig()

    def logprobs(self, rollouts: Rollouts) -> Pending[Tensor]:
        return self._all(PolicyWorker.logprobs, rollouts).map(merge_rows)

    def update(self, batch: PolicyBatch) -> Pending[Metrics]:
        return self._all(PolicyWorker.update, batch, self.settings).map(merge_stats)

    def update_once(self, batch: PolicyBatch) -> Pending[tuple[Metrics, Tensor]]:
        def merge(parts: list[tuple[Stats, tuple[list[int], Tensor]]]) -> tuple[Metrics, Tensor]:
            return merge_stats([s for s, _ in parts]), merge_rows([old for _, old in parts])

        return self._all(PolicyWorker.update_once, batch, self.settings).map(merge)

    def publish(self, version: int) -> Pending[WeightUpdate]:
        def from_rank_0(updates: list[WeightUpdate | None]) -> WeightUpdate:
            assert updates[0] is not None
            return updates[0]

        assert self.transport is not None, "a policy that publishes needs a transport"
        return self._all(PolicyWorker.publish, version, self.transport()).map(from_rank_0)

    def sft_step(self, rows: Sequence[int], loss_form: str) -> Pending[Metrics]:
        """One supervised optimiser step on these dataset rows."""
        return self._all(PolicyWorker.sft_step, rows, loss_form).map(merge_stats)

    def pair_logprobs(self, pairs: PreferencePairs) -> Pending[Tensor]:
        return self._all(PolicyWorker.pair_logprobs, pairs).map(merge_rows)

    def dpo_step(self, pairs: PreferencePairs, beta: float) -> Pending[Metrics]:
        return self._all(PolicyWorker.dpo_step, pairs, beta).map(merge_stats)

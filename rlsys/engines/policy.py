"""The policy and its frozen reference, as one rank sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlsys.algorithms.kl import k3
from rlsys.algorithms.masked import aggregate, length_mask, masked_sum
from rlsys.algorithms.policy_loss import ppo_clip
from rlsys.algorithms.preference import dpo_loss, implicit_rewards
from rlsys.batch import PreferencePairs, Rollouts, TrainBatch, micro_batches, step_rows
from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.config.stages import PpoConfig
from rlsys.data.collate import Collated, collate
from rlsys.data.rows import Demonstration
from rlsys.engines.common import Seat, Stats, train_step
from rlsys.engines.forward import collate_rollouts, forward_rows
from rlsys.engines.train import Metrics, build_engine
from rlsys.models.adapters import add_lora, lora_scaling, merged
from rlsys.models.heads import PolicyModule, freeze
from rlsys.weights import WeightUpdate, WeightWriter


class ReferenceWorker:
    """Log-probabilities under weights that do not move."""

    def __init__(self, module: PolicyModule, seat: Seat) -> None:
        self.module, self.seat = module.eval(), seat

    def logprobs(self, rollouts: Rollouts) -> tuple[list[int], Tensor]:
        """This rank's rows and their [.., T] log-probabilities."""
        return forward_rows(self.seat, rollouts, self._forward)

    def _forward(self, batch: Collated) -> Tensor:
        return self.module(batch.inputs, batch.states, batch.tokens)


class PolicyWorker(ReferenceWorker):
    """The trained policy: PPO updates, supervised steps, weight publication, checkpoints."""

    def __init__(
        self,
        module: PolicyModule,
        seat: Seat,
        train: TrainConfig,
        optim: OptimConfig,
        total_steps: int,
    ) -> None:
        if train.lora_rank:
            add_lora(module.vlm, train)
        elif train.freeze:
            freeze(module, train.freeze)
        super().__init__(module, seat)
        self.engine = build_engine(module, train, optim, total_steps, seat.rank)
        self.engine.module.eval()
        self._scaling = lora_scaling(module.vlm)

    def _forward(self, batch: Collated) -> Tensor:
        return self.engine.forward(batch.inputs, batch.states, batch.tokens)

    def update(self, batch: TrainBatch, ppo: PpoConfig) -> Stats:
        """PPO epochs over the batch."""
        rollouts = batch.rollouts
        counts = rollouts.token_counts
        steps = step_rows(len(rollouts), ppo.minibatch, ppo.epochs, batch.shuffle_seed)
        stats = Stats()
        for rows in steps:
            tokens = int(rollouts.lengths[rows].sum())

            def share(
                micro: list[int], real: bool, rows: list[int] = rows, tokens: int = tokens
            ) -> tuple[Tensor, Metrics]:
                logprobs = self._forward(collate_rollouts(self.seat.encoder, rollouts, micro))
                mask = rollouts.mask[micro] & real
                logprobs = logprobs.masked_fill(~mask, 0.0)
                old = batch.old_logprobs[micro].masked_fill(~mask, 0.0)
                losses, clipped = ppo_clip(
                    logprobs,
                    old,
                    batch.advantages[micro].masked_fill(~mask, 0.0),
                    clip=ppo.policy_clip,
                )
                loss = aggregate(
                    losses,
                    mask,
                    form=ppo.loss_form,
                    global_tokens=tokens,
                    global_sequences=len(rows),
                )
                whole = tokens * len(steps)
                moved = masked_sum(k3(old, logprobs.detach()), mask) / whole
                hit = masked_sum(clipped.float(), mask) / whole
                return loss, {
                    "loss": float(loss.detach()) / len(steps),
                    "clip_fraction": float(hit),
                    "update_kl": float(moved),
                }

            train_step(self.engine, self._plan(rows, counts), rows[0], share, stats)
        return stats

    def sft_step(self, rows: Sequence[int], loss_form: str) -> Stats:
        """One supervised step: cross-entropy of the rows' answers, response tokens only."""
        encoder = self.seat.encoder
        imitated = encoder.records.of_kind(rows, Demonstration)
        answers = [encoder.response(row.answer) for row in imitated]
        counts = [n + len(a) for n, a in zip(encoder.lengths(rows), answers, strict=True)]
        tokens = sum(len(a) for a in answers)
        stats = Stats()

        def share(micro: list[int], real: bool) -> tuple[Tensor, Metrics]:
            chosen = [answers[i] for i in micro]
            batch = collate(encoder, [rows[i] for i in micro], None, chosen)
            lengths = torch.tensor([len(a) for a in chosen])
            mask = length_mask(lengths, batch.tokens.shape[1]) & real
            loss = -aggregate(
                self._forward(batch),
                mask,
                form=loss_form,
                global_tokens=tokens,
                global_sequences=len(rows),
            )
            return loss, {"loss": float(loss.detach())}

        train_step(self.engine, self._plan(range(len(rows)), counts), 0, share, stats)
        return stats

    @torch.no_grad()
    def pair_logprobs(self, pairs: PreferencePairs) -> tuple[list[int], Tensor]:
        """This rank's pairs and the summed log-probabilities [.., 2] of chosen and rejected."""
        mine: list[int] = []
        results: list[Tensor] = []
        for micro in self._plan(range(len(pairs)), self._pair_counts(pairs)):
            sums = self._pair_sums(pairs, micro or [0])
            if micro:
                mine += micro
                results.append(sums)
        return mine, torch.cat(results) if results else torch.empty(0)

    def dpo_step(self, pairs: PreferencePairs, beta: float) -> Stats:
        """One optimiser step of DPO on pairs whose reference is known."""
        stats, reference = Stats(), pairs.reference
        if reference is None:
            raise ValueError("DPO needs the reference's log-probabilities")

        def share(micro: list[int], real: bool) -> tuple[Tensor, Metrics]:
            sums, weight = self._pair_sums(pairs, micro), float(real) / len(pairs)
            losses = dpo_loss(*sums.T, *reference[micro].T, beta=beta)
            rewards = implicit_rewards(sums.detach(), reference[micro], beta=beta)
            margins = rewards[:, 0] - rewards[:, 1]
            return losses.sum() * weight, {
                "loss": float(losses.detach().sum()) * weight,
                "accuracy": float((margins > 0).sum()) * weight,
                "margin": float(margins.sum()) * weight,
            }

        plan = self._plan(range(len(pairs)), self._pair_counts(pairs))
        train_step(self.engine, plan, 0, share, stats)
        return stats

    def _pair_counts(self, pairs: PreferencePairs) -> list[int]:
        """Tokens a pair takes in a batch: twice its longer side."""
        prompts = self.seat.encoder.lengths(pairs.prompt_index.tolist())
        sides = zip(prompts, pairs.chosen, pairs.rejected, strict=True)
        return [2 * (length + max(len(c), len(r))) for length, c, r in sides]

    def _pair_sums(self, pairs: PreferencePairs, micro: list[int]) -> Tensor:
        """[M, 2] summed log-probabilities; both answers of a prompt share its pixels."""
        answers = [side[i] for i in micro for side in (pairs.chosen, pairs.rejected)]
        index = [int(pairs.prompt_index[i]) for i in micro for _ in range(2)]
        batch = collate(self.seat.encoder, index, None, answers)
        lengths = torch.tensor([len(answer) for answer in answers])
        mask = length_mask(lengths, batch.tokens.shape[1])
        return self._forward(batch).masked_fill(~mask, 0.0).sum(-1).reshape(len(micro), 2)

    def publish(self, version: int, writer: WeightWriter) -> WeightUpdate | None:
        """Whole trained tensors to the engines; rank 0 writes, every rank takes part."""
        tensors = self._tensors(trained_only=True)
        return writer.publish(version, tensors) if self.seat.rank.rank == 0 else None

    def save_model(self, folder: Path) -> None:
        """A checkpoint transformers and vLLM load, adapters merged. Collective."""
        tensors = self._tensors(trained_only=False)
        if self.seat.rank.rank == 0:
            state = {name: tensor.clone() for name, tensor in tensors}
            self.module.vlm.save_pretrained(folder, state_dict=state)
            self.seat.encoder.processor.save_pretrained(folder)

    def _tensors(self, *, trained_only: bool) -> list[tuple[str, Tensor]]:
        wanted = trained_only and not self._scaling
        named = [
            (name.removeprefix("vlm."), tensor.clone() if self._sharded else tensor)
            for name, tensor in self.engine.full_params(trained_only=wanted)
        ]
        return merged(named, self._scaling, trained_only=trained_only)

    @property
    def _sharded(self) -> bool:
        return getattr(self.engine, "zero_stage", 0) == 3

    def _plan(self, rows: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
        rank = self.seat.rank
        return micro_batches(rows, counts, budget=self.seat.budget, world=rank.world)[rank.rank]

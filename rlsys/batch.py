"""Batches exchanged by driver and roles: per-token tensors and indices, never pixels.

Shapes: B samples, T = max_new_tokens. Response tensors are [B, T]; position t of row b is valid
when t < lengths[b], and the rest must not be read. Roles load pixels themselves by
``prompt_index``, the row of the prompt in the dataset.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from rlsys.algorithms.masked import length_mask
from rlsys.errors import DataError
from rlsys.micro_batches import Tokens


@dataclass(frozen=True)
class SampleRequest:
    """One response to sample. ``seed`` determines it, independently of the worker that serves it.

    ``hint`` is put after the question; the empty one changes nothing.
    """

    prompt_index: int
    sample_index: int
    seed: int
    hint: str = ""


def sample_seed(run_seed: int, iteration: int, prompt_index: int, sample_index: int) -> int:
    """A 62-bit counter-based seed, the same in every process and on every platform."""
    text = f"{run_seed}/{iteration}/{prompt_index}/{sample_index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


@dataclass(frozen=True)
class Rollouts:
    """Finished responses with the engine's token ids, which are trained on.

    prompt_index, sample_index, lengths [B] int64; prompt_ids: B tensors of expanded prompt ids
    (every visual token present); response_ids [B, T] int64; engine_logprobs [B, T] fp32;
    finished [B] bool, True when the response ended by itself; version of the weights; temperature
    of the distribution that was sampled from, which all log-probabilities here are of.
    """

    prompt_index: Tensor
    sample_index: Tensor
    prompt_ids: list[Tensor]
    response_ids: Tensor
    lengths: Tensor
    engine_logprobs: Tensor
    finished: Tensor
    version: int
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def mask(self) -> Tensor:
        """[B, T] bool, from lengths."""
        return length_mask(self.lengths, self.response_ids.shape[1])

    @property
    def tokens(self) -> list[Tokens]:
        """How long every row is."""
        index, lengths = self.prompt_index.tolist(), self.lengths.tolist()
        rows = zip(index, self.prompt_ids, lengths, strict=True)
        return [Tokens(prompt, len(ids), (length,)) for prompt, ids, length in rows]


@dataclass(frozen=True)
class SampleScores:
    """Outputs of policy, reference and scorers for a batch of rollouts: rewards and costs [B],
    log-probabilities [B, T], nats.
    """

    policy_logprobs: Tensor
    reference_logprobs: Tensor
    rewards: Tensor
    costs: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("rewards", "costs") and not bool(torch.isfinite(value).all()):
                rows = torch.nonzero(~torch.isfinite(value)).flatten().tolist()
                raise DataError(f"{field.name} are not finite in rows {rows}")


@dataclass(frozen=True)
class Scores(SampleScores):
    """SampleScores with the values [B, T] of the two critics."""

    reward_values: Tensor
    cost_values: Tensor


S = TypeVar("S", bound=SampleScores)


@dataclass(frozen=True)
class PolicyBatch:
    """Rollouts with the other inputs of a policy update, [B, T].

    old_logprobs: None where one step takes the whole batch (``Policy.update_once``);
    reference_logprobs: needed where ``kl_beta``, the weight of a KL term in the loss, is not 0;
    demonstrations: the rows of every optimiser step that are imitated with the weight ``ptx_coef``
    (none: no such term), ptx_measured: with the norm of that term's gradient.
    """

    rollouts: Rollouts
    old_logprobs: Tensor | None
    advantages: Tensor
    shuffle_seed: int
    reference_logprobs: Tensor | None = None
    kl_beta: float = 0.0
    demonstrations: Sequence[Sequence[int]] = ()
    ptx_coef: float = 0.0
    ptx_measured: bool = True

    def __post_init__(self) -> None:
        if self.kl_beta and self.reference_logprobs is None:
            raise ValueError("a KL term in the loss needs the reference's log-probabilities")


@dataclass(frozen=True)
class ValueBatch:
    """Rollouts with the other inputs of a critic's update, [B, T]."""

    rollouts: Rollouts
    old_values: Tensor
    returns: Tensor
    shuffle_seed: int


def gather_scored(parts: Sequence[tuple[Rollouts, S]]) -> tuple[Rollouts, S]:
    """One batch in canonical order (prompt, then sample), whatever order the parts finished in.

    Raises: ValueError when two parts carry the same sample or different weight versions.
    """
    versions = {rollouts.version for rollouts, _ in parts}
    if len(versions) != 1:
        raise ValueError(f"one batch holds rollouts of weight versions {sorted(versions)}")
    keys = [
        key
        for rollouts, _ in parts
        for key in zip(rollouts.prompt_index.tolist(), rollouts.sample_index.tolist(), strict=True)
    ]
    if len(set(keys)) != len(keys):
        raise ValueError("one batch holds the same sample twice")
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    prompt_ids = [ids for rollouts, _ in parts for ids in rollouts.prompt_ids]

    def cat(name: str, source: int) -> Tensor:
        return torch.cat([getattr(part[source], name) for part in parts])[order]

    rollouts = Rollouts(
        **{f: cat(f, 0) for f in ("prompt_index", "sample_index", "response_ids", "lengths")},
        **{f: cat(f, 0) for f in ("engine_logprobs", "finished")},
        prompt_ids=[prompt_ids[i] for i in order.tolist()],
        version=versions.pop(),
        temperature=parts[0][0].temperature,
    )
    kind = type(parts[0][1])
    return rollouts, kind(**{f.name: cat(f.name, 1) for f in fields(kind)})


@dataclass(frozen=True)
class PreferencePairs:
    """P pairs of answers, each to one prompt; a whole answer ends with the end-of-turn token.

    prompt_index [P]; chosen, rejected: P 1-d tensors; reference [P, 2]: summed log-probabilities of
    (chosen, rejected) under the reference, nats; None until they are known.
    """

    prompt_index: Tensor
    chosen: list[Tensor]
    rejected: list[Tensor]
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        counts = {len(self.prompt_index), len(self.chosen), len(self.rejected)}
        if self.reference is not None:
            counts.add(len(self.reference))
            if not bool(torch.isfinite(self.reference).all()):
                raise DataError("reference log-probabilities of preference pairs are not finite")
        if len(counts) != 1:
            raise ValueError(f"preference pairs with parts of {sorted(counts)} rows")

    def __len__(self) -> int:
        return len(self.chosen)

    def rows(self, chosen: Sequence[int]) -> PreferencePairs:
        """These pairs, in this order."""
        return PreferencePairs(
            self.prompt_index[list(chosen)],
            [self.chosen[i] for i in chosen],
            [self.rejected[i] for i in chosen],
            None if self.reference is None else self.reference[list(chosen)],
        )


class PromptCursor:
    """Endless prompts: a fresh seeded permutation every epoch; ``position`` is its whole state.

    A call that straddles two epochs skips a row it already has, so that its rows are distinct.
    """

    def __init__(self, count: int, seed: int, position: int = 0) -> None:
        if count < 1:
            raise ValueError("no prompts")
        self.count, self.seed, self.position = count, seed, position
        self._epoch, self._order = -1, list[int]()

    def next(self, number: int) -> list[int]:
        """The next ``number`` dataset rows, distinct within one call."""
        if number > self.count:
            raise ValueError(f"{number} distinct prompts are requested, there are {self.count}")
        rows: list[int] = []
        while len(rows) < number:
            row = self._row(self.position)
            self.position += 1
            if row not in rows:
                rows.append(row)
        return rows

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        if epoch != self._epoch:
            self._order = list(range(self.count))
            random.Random(f"{self.seed}/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order[offset]


def step_rows(count: int, minibatch: int, epochs: int, seed: int) -> list[list[int]]:
    """Rows of every optimiser step: each epoch visits each row once, in a seeded order."""
    steps: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        steps += [order[i : i + minibatch] for i in range(0, count, minibatch)]
    return steps

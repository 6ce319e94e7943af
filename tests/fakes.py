"""Roles that answer at once from arithmetic, and write down who was called in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlsys.batch import PolicyBatch, Rollouts, SampleRequest, ValueBatch
from rlsys.drivers.safe_rlhf_state import Roles
from rlsys.engines.weights import Loaded, WeightUpdate
from rlsys.runtime.pending import Metrics, Part, Pending

WIDTH = 4


def later(
    future: Future[Any], role: str = "fake", rank: int = 0, host: str = "here"
) -> Pending[Any]:
    """An answer that arrives when its future is resolved."""
    return Pending([Part(future, role, rank, host)], lambda values: values[0])


def make_rollouts(
    keys: Sequence[tuple[int, int]], *, version: int = 0, width: int = WIDTH
) -> Rollouts:
    """One rollout per (prompt, sample); every content is a function of its key alone."""
    lengths = [1 + (3 * prompt + sample) % width for prompt, sample in keys]
    steps = torch.arange(width, dtype=torch.float32)
    logprobs = [-(1 + 0.1 * prompt + 0.01 * sample) - 0.05 * steps for prompt, sample in keys]
    return Rollouts(
        prompt_index=torch.tensor([prompt for prompt, _ in keys]),
        sample_index=torch.tensor([sample for _, sample in keys]),
        prompt_ids=[torch.arange(2 + prompt % 3) for prompt, _ in keys],
        response_ids=torch.tensor([[10 * p + s + t for t in range(width)] for p, s in keys]),
        lengths=torch.tensor(lengths),
        engine_logprobs=torch.stack(logprobs),
        finished=torch.tensor([length < width for length in lengths]),
        version=version,
    )


@dataclass
class Log:
    """What happened, in order."""

    calls: list[str] = field(default_factory=list)
    batches: list[PolicyBatch] = field(default_factory=list)
    value_batches: dict[str, ValueBatch] = field(default_factory=dict)
    requests: list[list[SampleRequest]] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


@dataclass
class FakeRollout:
    """``chunk`` requests per answer; ``pend`` turns a finished chunk into a Pending."""

    log: Log
    chunk: int = 4
    version: int = 0
    pend: Callable[[int, Rollouts], Pending[Rollouts]] = lambda number, chunk: Pending.of(chunk)

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        self.log.calls.append("sample")
        self.log.requests.append(list(requests))
        chunks = [
            [(r.prompt_index, r.sample_index) for r in some] for some in self.chunks(requests)
        ]
        return [
            self.pend(number, make_rollouts(chunk, version=self.version))
            for number, chunk in enumerate(chunks)
        ]

    def chunks(self, requests: Sequence[SampleRequest]) -> list[list[SampleRequest]]:
        return [
            list(requests[start : start + self.chunk])
            for start in range(0, len(requests), self.chunk)
        ]

    def load(self, update: WeightUpdate) -> Pending[Loaded]:
        self.log.calls.append("load")
        self.log.versions.append(update.version)
        self.version = update.version
        return Pending.of(Loaded(update.version))


@dataclass
class FakePolicy:
    """Agrees with the engine up to ``gap`` nats."""

    log: Log
    name: str = "policy"
    gap: float = 0.0

    def logprobs(self, rollouts: Rollouts) -> Pending[Tensor]:
        self.log.calls.append(f"{self.name}.logprobs")
        return Pending.of(rollouts.engine_logprobs + self.gap)

    def update(self, batch: PolicyBatch) -> Pending[Metrics]:
        self.log.calls.append(f"{self.name}.update")
        self.log.batches.append(batch)
        return Pending.of({"loss": 0.5})

    def update_once(self, batch: PolicyBatch) -> Pending[tuple[Metrics, Tensor]]:
        self.log.calls.append(f"{self.name}.update_once")
        self.log.batches.append(batch)
        return Pending.of(({"loss": 0.5}, batch.rollouts.engine_logprobs + self.gap))

    def publish(self, version: int) -> Pending[WeightUpdate]:
        self.log.calls.append("publish")
        return Pending.of(WeightUpdate(version, (), "none", None))


@dataclass
class FakeScorer:
    log: Log
    name: str
    value: Callable[[int, int], float]

    def score(self, rollouts: Rollouts) -> Pending[Tensor]:
        self.log.calls.append(f"{self.name}.score")
        keys = zip(rollouts.prompt_index.tolist(), rollouts.sample_index.tolist(), strict=True)
        return Pending.of(torch.tensor([self.value(*key) for key in keys]))


@dataclass
class FakeCritic:
    log: Log
    name: str
    level: float = 0.0

    def values(self, rollouts: Rollouts) -> Pending[Tensor]:
        self.log.calls.append(f"{self.name}.values")
        return Pending.of(self.level + 0.1 * rollouts.response_ids.float())

    def update(self, batch: ValueBatch) -> Pending[Metrics]:
        self.log.calls.append(f"{self.name}.update")
        self.log.value_batches[self.name] = batch
        return Pending.of({"loss": 0.25})


def make_roles(
    *,
    reward: Callable[[int, int], float] = lambda prompt, sample: 0.1 * prompt - 0.2 * sample,
    cost: Callable[[int, int], float] = lambda prompt, sample: 1.0,
    gap: float = 0.0,
    reference_gap: float = 0.0,
) -> tuple[Roles, Log]:
    log = Log()
    roles = Roles(
        rollout=FakeRollout(log),
        policy=FakePolicy(log, gap=gap),
        reference=FakePolicy(log, "reference", gap=reference_gap),
        reward=FakeScorer(log, "reward", reward),
        cost=FakeScorer(log, "cost", cost),
        reward_critic=FakeCritic(log, "reward_critic"),
        cost_critic=FakeCritic(log, "cost_critic", level=0.3),
    )
    return roles, log


@dataclass(frozen=True)
class Call:
    """One call of a group. rank: None for all."""

    role: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rank: int | None = None


@dataclass
class FakeGroup:
    """Ranks that answer with ``answer(rank, call)`` and write down what they were asked."""

    size: int = 2
    answer: Callable[[int, Call], Any] = lambda rank, call: None
    calls: list[Call] = field(default_factory=list)

    def create(self, role: str, spec: Any) -> Pending[list[None]]:
        return self.call_all(role, "create", spec)

    def drop(self, role: str) -> Pending[list[None]]:
        return self.call_all(role, "drop")

    def call_all(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[list[Any]]:
        call = Call(role, method, args, kwargs)
        self.calls.append(call)
        return Pending.of([self.answer(rank, call) for rank in range(self.size)])

    def call_one(
        self, role: str, rank: int, method: str, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        call = Call(role, method, args, kwargs, rank)
        self.calls.append(call)
        return Pending.of(self.answer(rank, call))

    def call_any(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[Any]:
        return self.call_one(role, 0, method, *args, **kwargs)

    def install(self, role: str, method: str, *args: Any, whole: bool) -> Pending[list[Any]]:
        return self.call_all(role, method, *args)

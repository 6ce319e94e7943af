"""The roles of rlsys, played by groups of Ray actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from actors.group import Group
from rlsys.batch import PreferencePairs, Rollouts, SampleRequest, TrainBatch
from rlsys.config.stages import PpoConfig, ScorerStage, SftStage
from rlsys.engines.common import merge_stats
from rlsys.engines.forward import merge_rows
from rlsys.engines.workbench import RoleSpec
from rlsys.guard.decision import Moderation, moderations
from rlsys.judging.judge import Question
from rlsys.judging.parse import Unread
from rlsys.roles import Metrics, Pending
from rlsys.weights import WeightUpdate


class RemoteRole:
    """A role built on every rank of a group."""

    def __init__(self, group: Group, role: str) -> None:
        self.group, self.role = group, role

    def create(self, spec: RoleSpec) -> Pending[list[None]]:
        return self.group.all(self.role, "create", self.role, spec)

    def drop(self) -> Pending[list[None]]:
        return self.group.all(self.role, "drop", self.role)

    def save(self, folder: str) -> Pending[list[None]]:
        return self.group.all(self.role, "save", self.role, folder)

    def save_state(self, folder: str) -> Pending[list[None]]:
        """Weights, optimiser and schedule under ``folder``, in a subfolder named like the role."""
        return self.group.all(self.role, "save_state", self.role, folder, self.role)

    def load_state(self, folder: str) -> Pending[list[None]]:
        """What ``save_state`` wrote. The number of ranks must be the same."""
        return self.group.all(self.role, "load_state", self.role, folder, self.role)

    def _call(self, method: str, *args: Any, combine: Any = list) -> Pending[Any]:
        return self.group.all(self.role, "call", self.role, method, *args, combine=combine)

    def _publish(self, version: int, transport: str, token: str) -> Pending[WeightUpdate]:
        sent = (self.role, version, transport, token)
        return self.group.all(self.role, "publish", *sent, combine=lambda answers: answers[0])


class RemoteReference(RemoteRole):
    def logprobs(self, rollouts: Rollouts) -> Pending[Tensor]:
        return self._call("logprobs", rollouts, combine=merge_rows)


class RemotePolicy(RemoteReference):
    def __init__(self, group: Group, ppo: PpoConfig, transport: str, token: str) -> None:
        super().__init__(group, "policy")
        self.ppo, self.transport, self.token = ppo, transport, token

    def update(self, batch: TrainBatch) -> Pending[Metrics]:
        return self._call("update", batch, self.ppo, combine=merge_stats)

    def publish(self, version: int) -> Pending[WeightUpdate]:
        return self._publish(version, self.transport, self.token)


class RemoteScorer(RemoteRole):
    def score(self, rollouts: Rollouts) -> Pending[Tensor]:
        return self._call("score", rollouts, combine=merge_rows)

    def score_texts(self, rows: list[int], texts: list[str]) -> Pending[Tensor]:
        """[N], each text as an answer to the prompt of its dataset row."""
        return self._call("score_texts", rows, texts, combine=merge_rows)


class RemoteCritic(RemoteRole):
    def __init__(self, group: Group, signal: str, ppo: PpoConfig) -> None:
        super().__init__(group, f"{signal}_critic")
        self.signal, self.ppo = signal, ppo

    def values(self, rollouts: Rollouts) -> Pending[Tensor]:
        return self._call("values", rollouts, combine=merge_rows)

    def update(self, batch: TrainBatch) -> Pending[Metrics]:
        return self._call("update", batch, self.ppo, self.signal, combine=merge_stats)


class SftLearner(RemoteRole):
    """Supervised steps of the policy."""

    def __init__(self, group: Group, stage: SftStage) -> None:
        super().__init__(group, "policy")
        self.stage = stage

    def step(self, rows: list[int]) -> Pending[Metrics]:
        form = self.stage.loss_form
        return self._call("sft_step", rows, form, combine=merge_stats)


class DpoLearner(RemoteRole):
    """A policy that learns from preference pairs."""

    def pair_logprobs(self, pairs: PreferencePairs) -> Pending[Tensor]:
        return self._call("pair_logprobs", pairs, combine=merge_rows)

    def dpo_step(self, pairs: PreferencePairs, beta: float) -> Pending[Metrics]:
        return self._call("dpo_step", pairs, beta, combine=merge_stats)


class FeedbackLearner(DpoLearner, RemoteReference):
    """One whose weights the engines draw from."""

    def __init__(self, group: Group, transport: str, token: str) -> None:
        super().__init__(group, "policy")
        self.transport, self.token = transport, token

    def publish(self, version: int) -> Pending[WeightUpdate]:
        return self._publish(version, self.transport, self.token)


class ScorerLearner(RemoteRole):
    """A reward or cost model in training."""

    def __init__(self, group: Group, stage: ScorerStage) -> None:
        super().__init__(group, stage.kind)
        self.stage = stage

    def step(self, rows: list[int]) -> Pending[Metrics]:
        return self._call("step", rows, self.stage, combine=merge_stats)

    def score_pairs(self, rows: list[int]) -> Pending[Tensor]:
        return self._call("score_pairs", rows, combine=merge_rows)


class GuardLearner(RemoteRole):
    """A guard in training, and measured."""

    def step(self, rows: list[int]) -> Pending[Metrics]:
        return self._call("step", rows, combine=merge_stats)

    def moderate_rows(self, rows: list[int]) -> Pending[Tensor]:
        return self._call("moderate_rows", rows, combine=merge_rows)


class RemoteGuard(RemoteRole):
    def __init__(self, group: Group, threshold: float) -> None:
        super().__init__(group, "guard")
        self.threshold = threshold

    def moderate(self, rollouts: Rollouts) -> Pending[list[Moderation]]:
        return self._call("moderate", rollouts, combine=self._decide)

    def _decide(self, parts: list[tuple[list[int], Tensor]]) -> list[Moderation]:
        return moderations(merge_rows(parts), threshold=self.threshold)


class RemoteJudge(RemoteRole):
    """N engines with the same frozen model; every call is shared out among them."""

    def __init__(self, group: Group) -> None:
        super().__init__(group, "judge")

    def ask(self, questions: Sequence[Question]) -> Pending[list[str | Unread]]:
        ranks = len(self.group.ranks)
        shares = [list(questions[rank::ranks]) for rank in range(ranks)]
        asked = [
            self.group.one(self.role, rank, "call", self.role, "answer", share)
            for rank, share in enumerate(shares)
            if share
        ]

        def interleave(parts: list[list[str | Unread]]) -> list[str | Unread]:
            return [parts[i % ranks][i // ranks] for i in range(len(questions))]

        parts = [part for pending in asked for part in pending.parts]
        return Pending(parts, interleave, self.group.guards)


class RemoteRollout(RemoteRole):
    """N engines. Prompts go only to engines that proved the current weights."""

    def __init__(
        self, group: Group, *, max_new_tokens: int, temperature: float, chunk_prompts: int
    ) -> None:
        super().__init__(group, "rollout")
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.chunk_prompts = chunk_prompts
        self.version = -1

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        """Chunks of whole prompts, so that a prompt's samples share one engine's caches."""
        temperature = 0.0 if greedy else self.temperature
        return [
            self.group.one(
                self.role,
                number % len(self.group.ranks),
                "call",
                self.role,
                "generate",
                chunk,
                self.version,
                self.max_new_tokens,
                temperature,
            )
            for number, chunk in enumerate(_chunks(requests, self.chunk_prompts))
        ]

    def load(self, update: WeightUpdate) -> Pending[int]:
        return self._acknowledged(self._call("load", update), update.version)

    def load_checkpoint(self, folder: str, version: int) -> Pending[int]:
        return self._acknowledged(self._call("load_checkpoint", folder, version), version)

    def _acknowledged(self, answers: Pending[list[int]], version: int) -> Pending[int]:
        """The group's version moves only when every engine answered with it."""

        def agree(versions: list[int]) -> int:
            assert set(versions) == {version}
            self.version = version
            return version

        self.version = -1
        return Pending(answers.parts, agree, answers.guards)


def _chunks(requests: Sequence[SampleRequest], prompts: int) -> list[list[SampleRequest]]:
    chunks: list[list[SampleRequest]] = []
    seen: set[int] = set()
    for request in requests:
        if not chunks or (request.prompt_index not in seen and len(seen) == prompts):
            chunks.append([])
            seen = set()
        seen.add(request.prompt_index)
        chunks[-1].append(request)
    return chunks

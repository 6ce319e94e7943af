"""What a driver says to a handle is what the workers of a group are asked, and back."""

import inspect
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsys.batch import (
    PolicyBatch,
    PreferencePairs,
    SampleRequest,
    ValueBatch,
)
from rlsys.config.updates import PpoConfig
from rlsys.engines.weights import Loaded, WeightUpdate
from rlsys.errors import ConfigError, RoleError, SyncError
from rlsys.guard.labels import OUTPUTS
from rlsys.judging.judge import Question
from rlsys.roles import critic, guard, judge, policy, reference, rollout, scorer
from rlsys.roles.trained import Stats
from rlsys.runtime.group import Runtime
from rlsys.runtime.local import LocalGroup
from rlsys.runtime.pending import Pending
from rlsys.runtime.process import RankProcess
from tests.fakes import Call, FakeGroup, later, make_rollouts

WAIT = 1.0
ROLLOUTS = make_rollouts([(0, 0), (0, 1), (1, 0)])
WIDE = torch.arange(12.0).reshape(3, 4)
PPO = PpoConfig(epochs=7)
POLICY_BATCH = PolicyBatch(ROLLOUTS, WIDE, WIDE, shuffle_seed=1)
VALUE_BATCH = ValueBatch(ROLLOUTS, WIDE, WIDE, shuffle_seed=1)
SIDES = [torch.tensor([n, 9]) for n in range(3)]
PAIRS = PreferencePairs(torch.arange(3), SIDES, SIDES)
LOSS = scorer.ScorerLoss("cost", regularization=0.01)
UPDATE = WeightUpdate(4, (), "shm", "there")
FOLDER = Path("somewhere")


def of_rank(whole: Tensor) -> Callable[[int], tuple[list[int], Tensor]]:
    """Of three rows rank 0 has the last and the first, rank 1 the one between."""
    return lambda rank: ([2, 0], whole[[2, 0]]) if rank == 0 else ([1], whole[[1]])


def stats(rank: int) -> Stats:
    return Stats({"loss": 1.0 + rank}, {"lr": 0.5})


def nothing(rank: int) -> None:
    return None


MERGED = {"loss": 3.0, "lr": 0.5}
EMPTY = [None, None]
POLICY, REFERENCE = policy.PolicyWorker, reference.ReferenceWorker
Case = tuple[
    Callable[[FakeGroup], Any],  # handle
    Callable[[Any], Pending[Any]],  # what the driver calls
    type,  # worker
    tuple[str, str, tuple[Any, ...]],  # role, method, arguments
    Callable[[int], Any],  # what each rank answers
    Any,  # what the driver gets
]


def a_policy(group: FakeGroup) -> policy.PolicyHandle:
    return policy.PolicyHandle(group, lambda: "shm", PPO)


def a_reference(group: FakeGroup) -> reference.ReferenceHandle:
    return reference.ReferenceHandle(group, reference.ROLE.name)


def a_cost(group: FakeGroup) -> scorer.ScorerHandle:
    return scorer.ScorerHandle(group, scorer.COST.name)


def a_cost_trainer(group: FakeGroup) -> scorer.ScorerTrainerHandle:
    return scorer.ScorerTrainerHandle(group, LOSS)


def a_critic(group: FakeGroup) -> critic.CriticHandle:
    return critic.CriticHandle(group, critic.COST_CRITIC, PPO)


CASES: dict[str, Case] = {
    "policy.logprobs": (
        a_policy, lambda h: h.logprobs(ROLLOUTS), POLICY,
        ("policy", "logprobs", (ROLLOUTS,)), of_rank(WIDE), WIDE,
    ),
    "policy.update": (
        a_policy, lambda h: h.update(POLICY_BATCH), POLICY,
        ("policy", "update", (POLICY_BATCH, PPO)), stats, MERGED,
    ),
    "policy.publish": (
        a_policy, lambda h: h.publish(4), POLICY,
        ("policy", "publish", (4, "shm")), lambda rank: None if rank else UPDATE, UPDATE,
    ),
    "policy.sft_step": (
        a_policy, lambda h: h.sft_step([3, 5], "token_mean"), POLICY,
        ("policy", "sft_step", ([3, 5], "token_mean")), stats, MERGED,
    ),
    "policy.pair_logprobs": (
        a_policy, lambda h: h.pair_logprobs(PAIRS), POLICY,
        ("policy", "pair_logprobs", (PAIRS,)), of_rank(WIDE[:, :2]), WIDE[:, :2],
    ),
    "policy.dpo_step": (
        a_policy, lambda h: h.dpo_step(PAIRS, 0.1), POLICY,
        ("policy", "dpo_step", (PAIRS, 0.1)), stats, MERGED,
    ),
    "policy.save": (
        a_policy, lambda h: h.save(FOLDER), POLICY,
        ("policy", "save_model", (FOLDER,)), nothing, EMPTY,
    ),
    "policy.save_state": (
        a_policy, lambda h: h.save_state(FOLDER), POLICY,
        ("policy", "save_state", (FOLDER, "policy")), nothing, EMPTY,
    ),
    "reference.logprobs": (
        a_reference, lambda h: h.logprobs(ROLLOUTS), REFERENCE,
        ("reference", "logprobs", (ROLLOUTS,)), of_rank(WIDE), WIDE,
    ),
    "cost.score": (
        a_cost, lambda h: h.score(ROLLOUTS), scorer.ScorerWorker,
        ("cost", "score", (ROLLOUTS,)), of_rank(WIDE[:, 0]), WIDE[:, 0],
    ),
    "cost.score_texts": (
        a_cost, lambda h: h.score_texts([4, 5, 6], ["a", "b", "c"]), scorer.ScorerWorker,
        ("cost", "score_texts", ([4, 5, 6], ["a", "b", "c"])), of_rank(WIDE[:, 0]), WIDE[:, 0],
    ),
    "cost.score_pairs": (
        a_cost, lambda h: h.score_pairs([4, 5, 6]), scorer.ScorerWorker,
        ("cost", "score_pairs", ([4, 5, 6],)), of_rank(WIDE[:, :2]), WIDE[:, :2],
    ),
    "cost.step": (
        a_cost_trainer, lambda h: h.step([4, 5]), scorer.ScorerTrainer,
        ("cost", "step", ([4, 5], LOSS)), stats, MERGED,
    ),
    "cost_critic.values": (
        a_critic, lambda h: h.values(ROLLOUTS), critic.CriticWorker,
        ("cost_critic", "values", (ROLLOUTS,)), of_rank(WIDE), WIDE,
    ),
    "cost_critic.update": (
        a_critic, lambda h: h.update(VALUE_BATCH), critic.CriticWorker,
        ("cost_critic", "update", (VALUE_BATCH, PPO)), stats, MERGED,
    ),
    "cost_critic.load_state": (
        a_critic, lambda h: h.load_state(FOLDER), critic.CriticWorker,
        ("cost_critic", "load_state", (FOLDER, "cost_critic")), nothing, EMPTY,
    ),
    "guard.moderate_rows": (
        guard.GuardHandle, lambda h: h.moderate_rows([7]), guard.GuardWorker,
        ("guard", "moderate_rows", ([7],)), of_rank(WIDE), WIDE,
    ),
    "guard.step": (
        guard.GuardTrainerHandle, lambda h: h.step([7, 8]), guard.GuardTrainer,
        ("guard", "step", ([7, 8],)), stats, MERGED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_handle_asks_every_rank_and_puts_the_parts_together(name: str) -> None:
    make, ask, worker, (role, method, args), answer, expected = CASES[name]
    group = FakeGroup(answer=lambda rank, _: answer(rank))
    found = ask(make(group)).result(WAIT)
    assert group.calls == [Call(role, method, args, {})]
    assert worker_takes(worker, group.calls[0])
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def worker_takes(worker: type, call: Call) -> bool:
    """The method exists and can be called like that."""
    inspect.signature(getattr(worker, call.method)).bind(None, *call.args, **call.kwargs)
    return True


def test_a_role_is_created_and_dropped_under_its_name() -> None:
    group = FakeGroup()
    handle = a_critic(group)
    handle.create("spec").result(WAIT)
    handle.drop().result(WAIT)
    assert group.calls == [
        Call("cost_critic", "create", ("spec",), {}), Call("cost_critic", "drop", (), {}),
    ]  # fmt: skip


def test_a_guard_decides_by_its_threshold() -> None:
    outputs = torch.zeros(3, OUTPUTS)
    outputs[:, 0] = torch.tensor([-2.0, 0.5, 2.0])  # probabilities 0.12, 0.62, 0.88
    group = FakeGroup(answer=lambda rank, _: of_rank(outputs)(rank))
    for threshold, flagged in ((0.5, [False, True, True]), (0.7, [False, False, True])):
        found = guard.GuardHandle(group, threshold).moderate(ROLLOUTS).result(WAIT)
        assert [each.level != "none" for each in found] == flagged
        prompts = guard.GuardHandle(group).moderate_prompts([7, 8, 9], threshold).result(WAIT)
        assert prompts == found
    assert group.calls[:2] == [
        Call("guard", "moderate", (ROLLOUTS,), {}),
        Call("guard", "moderate_prompts", ([7, 8, 9],), {}),
    ]
    assert all(worker_takes(guard.GuardWorker, call) for call in group.calls)


# engines


def an_engine(group: FakeGroup) -> rollout.RolloutHandle:
    return rollout.RolloutHandle(group, max_new_tokens=4, temperature=0.7, chunk_prompts=2)


def engine_answers(rank: int, call: Call) -> Any:
    """Engines that hold what they are sent; a chunk's answer is what was asked for."""
    if call.method in ("load", "load_checkpoint"):
        return Loaded(call.args[0].version if call.method == "load" else call.args[1])
    return call.args


def requests(prompts: int, samples: int = 2) -> list[SampleRequest]:
    return [SampleRequest(p, s, 10 * p + s) for p in range(prompts) for s in range(samples)]


def test_whole_prompts_are_a_chunk_that_any_engine_may_draw() -> None:
    group = FakeGroup(answer=engine_answers)
    engine, wanted = an_engine(group), requests(5)
    engine.load(UPDATE).result(WAIT)
    group.calls.clear()
    chunks = engine.generate(wanted)
    assert [call.method for call in group.calls] == ["draw"] * 3
    assert all(worker_takes(rollout.RolloutWorker, call) for call in group.calls)
    assert [chunk.result(WAIT) for chunk in chunks] == [
        (wanted[:4], 4, 4, 0.7), (wanted[4:8], 4, 4, 0.7), (wanted[8:], 4, 4, 0.7),
    ]  # fmt: skip
    engine.generate(wanted[:1], greedy=True)
    assert group.calls[3].args == (wanted[:1], 4, 4, 0.0)


def test_a_version_counts_when_every_engine_has_answered_with_it() -> None:
    answers: list[Future[Loaded]] = [Future(), Future()]

    class Slow(FakeGroup):
        def call_all(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[Any]:
            super().call_all(role, method, *args, **kwargs)
            one, other = (later(answer) for answer in answers)
            return Pending((*one.parts, *other.parts), list)

    group = Slow(answer=engine_answers)
    engine = an_engine(group)
    for version in (3, 4):
        answers[:] = [Future(), Future()]
        update = WeightUpdate(version, (), "shm", "there")
        loading = engine.load(update)
        assert group.calls[-1] == Call("rollout", "load", (update,), {})
        assert engine.version == -1  # neither the old weights nor the new ones are proved
        for answer in answers:
            answer.set_result(Loaded(version))
        assert loading.result(WAIT) == Loaded(version)
        assert engine.version == version
    answers[:] = [Future(), Future()]
    loading = engine.load_checkpoint("folder", 5)
    assert group.calls[-1] == Call("rollout", "load_checkpoint", ("folder", 5), {})
    answers[0].set_result(Loaded(5))
    answers[1].set_exception(SyncError("tensor x"))
    with pytest.raises(RoleError, match="tensor x"):
        loading.result(WAIT)
    assert engine.version == -1


def test_a_refused_chunk_is_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsys.runtime.pending.CAUSE_GRACE_SECONDS", 0.0)

    class Refusing(FakeGroup):
        def call_any(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[Any]:
            future: Future[Any] = Future()
            future.set_exception(SyncError("no verified weights"))
            return later(future)

    for chunk in an_engine(Refusing()).generate(requests(3)):
        with pytest.raises(RoleError, match="no verified weights"):
            chunk.result(WAIT)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_judges_call_stays_whole_however_many_engines_there_are(count: int, ranks: int) -> None:
    group = FakeGroup(ranks, answer=lambda rank, call: [q.name for q in call.args[0]])
    questions = [Question(f"q{number}") for number in range(count)]
    replies = judge.JudgeHandle(group).request(questions).result(WAIT)
    assert replies == [f"q{number}" for number in range(count)]
    assert [call.args for call in group.calls] == [(questions,)] * bool(count)
    assert all(worker_takes(judge.JudgeWorker, call) for call in group.calls)


# groups


def test_a_role_that_no_group_hosts_names_the_key() -> None:
    group = FakeGroup()
    runtime = Runtime({"policy": group}, lambda: "shm", {})
    assert runtime.group("policy") is group
    with pytest.raises(ConfigError, match=r"groups: no group hosts the role 'judge'.*policy"):
        runtime.group("judge")


class Counter:
    """A role that counts, and a spec that builds it from what the process shares."""

    def __init__(self, start: int) -> None:
        self.count = start

    def build(self, factory: Any) -> "Counter":
        assert factory is not None
        return Counter(self.count)

    def add(self, number: int, *, twice: bool = False) -> int:
        if number < 0:
            raise ValueError("negative")
        self.count += number * (1 + twice)
        return self.count


def test_a_local_group_runs_what_a_group_of_processes_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RankProcess, "factory", object())
    group = LocalGroup(RankProcess(0, {}, "token"))
    assert group.create("a", Counter(10)).result(WAIT) == [None]
    group.create("b", Counter(0)).result(WAIT)
    assert group.call_all("a", "add", 1).result(WAIT) == [11]
    assert group.call_one("a", 0, "add", 2, twice=True).result(WAIT) == 15
    assert group.call_all("b", "add", 0).result(WAIT) == [0]
    group.create("a", Counter(20)).result(WAIT)  # replaces it
    assert group.call_all("a", "add", 0).result(WAIT) == [20]
    with pytest.raises(ValueError, match="negative"):
        group.call_all("a", "add", -1)
    assert group.call_any("a", "add", 1).result(WAIT) == 21
    assert group.install("a", "add", 1, whole=True).result(WAIT) == [22]
    assert group.drop("a").result(WAIT) == [None]
    with pytest.raises(KeyError):
        group.call_all("a", "add", 0)


def test_rollouts_of_a_generation_are_what_the_engine_answered() -> None:
    def answer(rank: int, call: Call) -> Any:
        return make_rollouts([(each.prompt_index, each.sample_index) for each in call.args[0]])

    chunks = [c.result(WAIT) for c in an_engine(FakeGroup(answer=answer)).generate(requests(5))]
    drawn = [int(p) for chunk in chunks for p in chunk.prompt_index]
    assert drawn == [request.prompt_index for request in requests(5)]


def test_the_state_of_an_engine_is_a_checkpoint_and_the_last_update() -> None:
    installed: list[tuple[str, bool]] = []

    class Elastic(FakeGroup):
        def install(self, role: str, method: str, *args: Any, whole: bool) -> Pending[list[Any]]:
            installed.append((method, whole))
            return super().install(role, method, *args, whole=whole)

    engine = an_engine(Elastic(answer=engine_answers))
    engine.load_checkpoint("folder", 0).result(WAIT)
    engine.load(UPDATE).result(WAIT)
    assert installed == [("load_checkpoint", True), ("load", False)]

"""Rollout engines that are killed, stopped, added and removed while iterations go on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.cluster import open_cluster
from rlsys.batch import PolicyBatch, SampleRequest, sample_seed
from rlsys.config.schema import GroupConfig, OptimConfig, RunConfig, TimeoutConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.slice import DataSlice
from rlsys.errors import RoleError
from rlsys.roles.policy import PolicyHandle, PolicySpec
from rlsys.roles.rollout import RolloutHandle, RolloutSpec
from rlsys.roles.trained import Training
from rlsys.runtime.group import Runtime
from rlsys.stages.run_dir import CONFIG, RunDir
from tests.integration.helpers import RLSYS

WAIT = 240.0
HEARTBEAT = 20.0
PAUSE = 1.0  # between iterations, which leaves the cores to the engines that start
REQUESTS = [SampleRequest(p, s, sample_seed(0, 0, p, s)) for p in range(12) for s in range(4)]
Ids = dict[tuple[int, int], list[int]]


class Loop:
    """A policy that differs from its checkpoint, and iterations: sync, then sample."""

    def __init__(self, runtime: Runtime, run_dir: Path, model: str, data: DataSlice) -> None:
        self.runtime, self.run_dir, self.version = runtime, run_dir, 0
        self.policy = PolicyHandle(
            runtime.group("policy"), lambda: "shm", PpoConfig(minibatch=8, epochs=1)
        )
        train = Training(TrainConfig(), OptimConfig(lr=1e-2), total_steps=10, seed=0)
        self.rollout = RolloutHandle(
            runtime.group("rollout"), max_new_tokens=24, temperature=1.0, chunk_prompts=2
        )
        created = self.policy.create(PolicySpec(model, data, "float32", train))
        config = RunConfig("tests", groups={}, stages={}).engine
        engine = replace(config, max_model_len=128, max_num_seqs=16)
        self.rollout.create(RolloutSpec(model, data, engine, "float32")).result(WAIT)
        created.result(WAIT)
        self.rollout.load_checkpoint(model, 0).result(WAIT)
        drawn = self.rollout.generate(REQUESTS[:8])[0].result(WAIT)
        ones = drawn.engine_logprobs * 0 + 1
        self.policy.update(PolicyBatch(drawn, drawn.engine_logprobs, ones, 1)).result(WAIT)
        self.base, self.expected = self.sample(), self.iterate()

    def iterate(self) -> Ids:
        self.version += 1
        self.rollout.load(self.policy.publish(self.version).result(WAIT)).result(WAIT)
        return self.sample()

    def sample(self) -> Ids:
        """Every response, by prompt and sample; a second answer to one is an error."""
        found: Ids = {}
        for pending in self.rollout.generate(REQUESTS):
            chunk = pending.result(WAIT)
            rows = zip(chunk.prompt_index, chunk.sample_index, chunk.response_ids, strict=True)
            for (prompt, sample, ids), length in zip(rows, chunk.lengths, strict=True):
                assert (int(prompt), int(sample)) not in found
                found[int(prompt), int(sample)] = ids[:length].tolist()
        return found

    def engines(self) -> list[dict[str, Any]]:
        """As status.json has them."""
        status = json.loads((self.run_dir / "status.json").read_text())
        return [each for each in status["processes"] if each["group"] == "rollout"]

    def iterate_until(self, happened: Callable[[], bool], seconds: float) -> None:
        """Iterations, all of which give the same ids, until something has happened."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, (self.engines(), self.runtime.monitor.events())
            assert self.iterate() == self.expected
            time.sleep(PAUSE)

    def all_ready(self, count: int) -> Callable[[], bool]:
        return lambda: (
            self.rollout.group.size == count
            and len([each for each in self.engines() if each["state"] == "ready"]) == count
        )


@pytest.fixture(scope="module")
def loop(model: str, data: DataSlice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    run_dir = tmp_path_factory.mktemp("elastic")
    (run_dir / "logs").mkdir()
    (run_dir / CONFIG).touch()
    config = RunConfig(
        name="elastic",
        groups={
            "rollout": GroupConfig(roles=["rollout"], ranks=2, cpus=0.25),
            "train": GroupConfig(roles=["policy"], cpus=0.25),
        },
        timeouts=TimeoutConfig(heartbeat=HEARTBEAT),
        stages={},
    )
    with open_cluster(config, run_dir) as runtime:
        RunDir(run_dir, resumed=False).describe(runtime)
        yield Loop(runtime, run_dir, model, data)


@contextlib.contextmanager
def after(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, act)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.mark.timeout(900)
def test_killed_and_stopped_engines_cost_no_prompt_and_change_no_id(loop: Loop) -> None:
    assert loop.base != loop.expected, "an engine with the checkpoint's weights must be noticed"
    loop.iterate_until(loop.all_ready(2), WAIT)
    started = time.monotonic()
    assert loop.iterate() == loop.expected
    length = time.monotonic() - started
    draw = random.Random(0)
    loop.runtime.monitor.row("ppo", 0, {})
    for blow in (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):
        victim = draw.choice(loop.engines())
        with after(draw.uniform(0, length), lambda: os.kill(victim["pid"], blow)):  # noqa: B023
            assert loop.iterate() == loop.expected
        gone = lambda: victim["pid"] not in [e["pid"] for e in loop.engines()]  # noqa: B023, E731
        loop.iterate_until(gone, HEARTBEAT + 60)
        loop.iterate_until(loop.all_ready(2), WAIT)
    (*_, event) = loop.runtime.monitor.events()
    assert "no heartbeat for" in event
    row = loop.runtime.monitor.row("ppo", 1, {})
    assert row["rollout/workers"] == 2
    assert row["rollout/reissued_chunks"] > 0


@pytest.mark.timeout(600)
def test_engines_are_added_and_removed_by_the_command_line(loop: Loop) -> None:
    for count in (3, 1):
        asked = [RLSYS, "scale", str(loop.run_dir), "--rollout", str(count)]
        with subprocess.Popen(
            asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as command:
            loop.iterate_until(loop.all_ready(count), WAIT)
            said, _ = command.communicate(timeout=30)
        assert command.returncode == 0, said
        assert f"{count} rollout engines requested" in said
        assert loop.iterate() == loop.expected
        assert {each["weight_version"] for each in loop.engines()} <= {
            loop.version, loop.version - 1, loop.version - 2,
        }  # fmt: skip


def test_a_trainer_that_is_stopped_ends_the_waits_with_its_name(loop: Loop) -> None:
    status = json.loads((loop.run_dir / "status.json").read_text())
    (pid,) = (each["pid"] for each in status["processes"] if each["group"] == "train")
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(RoleError, match=r"'policy' failed \(rank 0.*no heartbeat for 2\d s"):
        loop.iterate()
    assert time.monotonic() - started < HEARTBEAT + 10

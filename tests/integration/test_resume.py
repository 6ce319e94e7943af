"""Runs that are killed, and go on as if they had not been."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from safetensors.torch import load_file

from tests.endpoint_server import Server, serving
from tests.integration.helpers import artifact, metric_rows, rows_of

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("resume.yaml")
# Stages that need a server; ``score`` without a reply is a failure, which no cache remembers.
FEEDBACK = """
  judge: {{kind: judge, endpoint: {{url: "{url}", model: m, per_second: 500}}, max_prompts: 2}}
  rlaif:
    kind: rlaif
    policy: start
    judge: judge
    rounds: 3
    num_prompts: 6
    samples_per_prompt: 6
    max_new_tokens: 16
    margin: 1
    min_chosen_score: 0
    max_parse_failures: 0.9
    minibatch: 1
    optim: {{lr: 1.0e-3}}
"""
RISK = {"malicious_content": "x", "source": "image", "risk_category": "Privacy"}
STAGES = ("start", "reward", "cost", "guard", "dpo", "grpo", "ppo", "ahead", "rlaif")


class Kill(NamedTuple):
    """Where a start ends: at the ``number``-th call of ``place`` since it began.

    stage: that it was in; logged: the stage's last step in metrics.jsonl; resumes: the checkpoint
    that the next start goes on from, 0 where there is none.
    """

    stage: str
    logged: int
    place: str
    number: int
    resumes: int


POLICY, SCORER = "rlsys.roles.policy:PolicyWorker", "rlsys.roles.scorer"
ROLLOUT, SAVE = "rlsys.roles.rollout:RolloutWorker", "rlsys.roles.trained:TrainedWorker.save_state"
# In this order: each start goes on from the last.
KILLS = [
    Kill("start", 5, f"{POLICY}.sft_step", 7, 4),
    Kill("start", 5, "rlsys.checkpoint:json.dump", 1, 4),  # before a checkpoint has its manifest
    Kill("start", 12, f"{POLICY}.save_model", 1, 12),  # all steps done
    Kill("reward", 0, f"{SCORER}:ScorerTrainer.step", 4, 2),
    Kill("reward", 6, f"{SCORER}:ScorerWorker.score_pairs", 1, 6),  # held-out quality
    Kill("cost", 0, f"{SCORER}:ScorerTrainer.step", 4, 2),
    Kill("guard", 0, "rlsys.stages.recipe:_run_stage", 4, 0),  # between two stages
    Kill("guard", 0, "rlsys.roles.guard:GuardTrainer.step", 3, 2),
    Kill("dpo", 0, f"{POLICY}.dpo_step", 4, 2),
    Kill("grpo", 2, f"{POLICY}.update", 3, 2),
    Kill("ppo", 0, f"{ROLLOUT}.draw", 2, 0),  # between the chunks of an iteration
    Kill("ppo", 1, f"{SCORER}:ScorerWorker.score", 7, 0),  # after one without a checkpoint
    Kill("ppo", 2, "rlsys.drivers.multiplier:Multiplier.step", 3, 2),
    Kill("ppo", 3, f"{POLICY}.update", 2, 2),
    Kill("ppo", 3, "rlsys.roles.critic:CriticWorker.update", 4, 2),  # the other has its update
    Kill("ppo", 3, f"{ROLLOUT}.load", 3, 2),  # sync
    Kill("ppo", 4, SAVE, 2, 2),  # a checkpoint, half written
    Kill("ppo", 4, f"{POLICY}.save_model", 1, 4),  # after the last iteration
    Kill("ahead", 2, "rlsys.drivers.multiplier:Multiplier.step", 3, 2),  # the next batch is drawn
    Kill("ahead", 3, f"{POLICY}.update", 2, 2),
    Kill("evaluation", 0, "rlsys.stages.answering:Evaluator.evaluate", 2, 0),
    Kill("rlaif", 0, "rlsys.drivers.rlaif:_finish_scoring", 2, 0),  # one chunk is judged
    Kill("rlaif", 0, f"{POLICY}.dpo_step", 2, 0),
    Kill("rlaif", 1, f"{ROLLOUT}.load", 3, 1),
    Kill("rlaif", 2, f"{ROLLOUT}.draw", 2, 2),  # between the chunks of the last round
    Kill("rlaif", 3, SAVE, 1, 2),
    Kill("rlaif", 3, f"{POLICY}.save_model", 2, 3),  # after the last round
]


MODULE = [sys.executable, "-m", "tests.integration.killed"]
ENVIRONMENT = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "OPENAI_API_KEY": "anything"}


def respond(_: int, body: dict[str, Any]) -> tuple[int, str]:
    """What a judge says depends on the question alone."""
    content = body["messages"][0]["content"]
    text = content[-1]["text"]
    draw = int(hashlib.sha256(json.dumps(content).encode()).hexdigest(), 16)
    if "JSON list" in text:
        return 200, json.dumps([RISK] * (draw % 2))
    if "yes or no" in text:
        return 200, ("yes", "no")[draw % 2]
    return 200, "" if draw % 9 == 0 else str(draw % 11)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(Server(respond)) as url:
        path = tmp_path_factory.mktemp("recipe") / "resume.yaml"
        path.write_text(RECIPE.read_text() + FEEDBACK.format(url=url))
        yield str(path)


Whole = Callable[[], Path]
"""Waits for the run that nobody disturbs. Returns: its directory."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: str) -> Iterator[Whole]:
    """It is in a fresh process, beside the others."""
    runs = tmp_path_factory.mktemp("whole")
    output = runs / "output.txt"
    command = [*MODULE, "-", "0", recipe, f"runs_dir={runs}"]
    with (
        output.open("w") as stream,
        subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdout=stream, stderr=subprocess.STDOUT
        ) as process,
    ):

        def wait() -> Path:
            assert process.wait(timeout=300) == 0, output.read_text()
            return runs / "resume"

        yield wait
        process.kill()


Start = Callable[[Path, str, int], tuple[int, str]]
"""Of a run in (runs_dir), killed at (place, number). Returns: exit status and output."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, recipe: str) -> Iterator[Start]:
    """Forks a process for each run from one that has imported the engines."""
    output = tmp_path_factory.mktemp("output") / "output.txt"
    with subprocess.Popen(
        [*MODULE, "serve"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        requests, statuses = server.stdin, server.stdout

        def run(runs: Path, place: str, number: int) -> tuple[int, str]:
            arguments = [str(output), place, str(number), recipe, f"runs_dir={runs}"]
            requests.write(json.dumps(arguments) + "\n")
            requests.flush()
            return int(statuses.readline()), output.read_text()

        yield run
        requests.close()


def weights(run: Path, stage: str) -> dict[str, Any]:
    """Of a policy in rounds, those after each round too."""
    folder = artifact(run, stage)
    files = sorted(folder.rglob("*.safetensors"))
    return {
        f"{file.relative_to(folder)}/{k}": v for file in files for k, v in load_file(file).items()
    }


def died_in(run: Path) -> tuple[str, int]:
    """The stage that a killed run was in, and the last step that it logged there."""
    done = (
        {each["name"] for each in json.loads((run / "stages.json").read_text())}
        if (run / "stages.json").exists()
        else set()
    )
    stages = yaml.safe_load((run / "config.yaml").read_text())["stages"]
    stage = next(name for name in stages if name not in done)
    return stage, max((row["step"] for row in rows_of(run, stage)), default=0)


def resumed_after(output: str) -> int:
    """The step of the first checkpoint that a start went on from, 0 where there was none."""
    steps = [line for line in output.splitlines() if "resumed after step" in line]
    return int(steps[0].split()[-1]) if steps else 0


def drawn(runs: Path) -> dict[str, int]:
    """Chunks of samples on disk -> when each was written."""
    chunks = (runs / "artifacts").glob(".*.partial/progress/rollouts/*/*.pt")
    return {str(chunk): chunk.stat().st_mtime_ns for chunk in chunks}


def killed_run(start: Start, runs: Path) -> Path:
    """Killed everywhere, and finished in the end."""
    run, resumes, kept = runs / "resume", 0, dict[str, int]()
    for kill in KILLS:
        status, output = start(runs, kill.place, kill.number)
        assert status == -signal.SIGKILL, f"{kill}\n{output}"
        assert died_in(run) == (kill.stage, kill.logged), f"{kill}\n{output}"
        assert resumed_after(output) == resumes, f"{kill}\n{output}"
        again = drawn(runs)
        assert all(again.get(chunk, time) == time for chunk, time in kept.items()), kill
        if kill.place.endswith(".draw"):
            versions = [Path(chunk).parent for chunk in again]
            assert versions.count(max(versions)) == 1, "one chunk of two"
        resumes, kept = kill.resumes, again
    status, output = start(runs, "-", 0)
    assert status == 0, output
    assert resumed_after(output) == resumes
    return run


@pytest.mark.timeout(1500)
def test_a_run_killed_everywhere_ends_bit_equal_to_the_undisturbed_one(
    whole: Whole, start: Start, tmp_path: Path
) -> None:
    run = killed_run(start, tmp_path)
    undisturbed = whole()
    assert [
        folder.name
        for folder in tmp_path.iterdir()
        if folder.name not in ("artifacts", "judgements")
    ] == ["resume"], "every start went on in the same directory"
    rows, expected = metric_rows(run), metric_rows(undisturbed)
    steps = [(row["stage"], row["step"]) for row in rows]
    assert len(set(steps)) == len(steps), "every step once"
    assert sorted(rows, key=str) == sorted(expected, key=str)
    for stage in STAGES:
        found, wanted = weights(run, stage), weights(undisturbed, stage)
        assert found.keys() == wanted.keys()
        assert [n for n, tensor in wanted.items() if not tensor.equal(found[n])] == [], stage
    for file in ("evaluation.json", "samples.jsonl"):
        assert (run / file).read_text() == (undisturbed / file).read_text()
    assert not list((tmp_path / "artifacts").glob("*/progress"))
    assert not list((tmp_path / "artifacts").glob(".*.partial"))
    feedback = rows_of(run, "rlaif")
    assert all(row["pairs/pair"] > 0 for row in feedback)
    assert any(row["scored"] < 1 for row in feedback), "a reply is missing"

"""The command line, as a user runs it: whole recipes in their own processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlsys.report.role_times import stage_times
from tests.integration.helpers import RLSYS, artifact, rows_of, wait_until

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "examples/photos/recipe.yaml")
TRAINED = {"policy", "reference", "reward", "cost", "reward_critic", "cost_critic", "guard"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data from real photographs; artefacts one test makes are reused by others, never needed."""
    folder = tmp_path_factory.mktemp("photos")
    script = str(ROOT / "examples/photos/prepare.py")
    subprocess.run([sys.executable, script, str(folder / "data")], check=True, timeout=60)
    return folder


def command(workdir: Path, *overrides: str) -> list[str]:
    places = (f"data.source={workdir / 'data'}", f"runs_dir={workdir / 'runs'}")
    return [RLSYS, "run", RECIPE, *places, *overrides]


@pytest.fixture(scope="module")
def photos(workdir: Path) -> Path:
    """A finished run of the example's recipe, as it is, with its trace."""
    done = subprocess.run(
        command(workdir, "--trace"),
        capture_output=True,
        text=True,
        timeout=250,
        cwd=workdir,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir / "runs/photos"


def test_two_whole_iterations_on_real_photographs(photos: Path) -> None:
    iterations = rows_of(photos, "ppo")
    assert [row["step"] for row in iterations] == [1, 2]
    assert [row["weights_version"] for row in iterations] == [0, 1]
    assert all(row["gap/max"] < 1e-4 for row in iterations)
    assert iterations[1]["kl"] > iterations[0]["kl"], "the policy must have moved"
    tables = json.loads((photos / "evaluation.json").read_text())
    assert list(tables) == ["start", "final", "guarded", "guarded + refusal"]
    rounds = rows_of(photos, "guarded")
    assert [row["step"] for row in rounds] == [0, 1, 2]
    assert rounds[0]["flagged"] >= rounds[2]["flagged"]
    assert tables["final"]["all"]["unsafe"]["n"] == 4
    assert tables["final"]["all"]["helpful"] is None
    report = (photos / "report.html").read_text()
    assert "data:image/png;base64" in report
    left = [path.name for path in (photos.parent / "artifacts").glob("*/progress")]
    assert left == [], "the checkpoints of a finished stage are gone"
    assert list((photos / "wandb").glob("offline-run-*/*.wandb")), "the tracker must have recorded"


def test_the_trace_shows_every_role_at_work(photos: Path) -> None:
    events = json.loads((photos / "trace.json").read_text())["traceEvents"]
    spans = [each for each in events if each["ph"] == "X"]
    assert {each["cat"] for each in spans} >= {*TRAINED, "rollout", "driver"}
    assert {("policy", "update"), ("policy", "backward"), ("reward", "score"),
            ("rollout", "draw"), ("driver", "sync")} <= {
                (each["cat"], each["name"]) for each in spans}  # fmt: skip
    # on one clock: both iterations' updates lie within the driver's phase of that name
    phases, updates = (
        [each for each in spans if (each["cat"], each["name"]) == (track, "update")]
        for track in ("driver", "policy")
    )
    slack = 50_000  # microseconds, between the clocks of two processes
    assert len(updates) >= len(phases) == 2
    assert all(
        any(
            phase["ts"] - slack <= each["ts"]
            and each["ts"] + each["dur"] <= phase["ts"] + phase["dur"] + slack
            for phase in phases
        )
        for each in updates
    )
    times = stage_times(events, "ppo")
    assert times.iterations == 1
    assert {each.role for each in times.work} >= {*TRAINED, "rollout"} - {"guard"}
    assert all(0 < waiting < 1 for waiting in times.waiting.values())


@pytest.mark.timeout(500)
@pytest.mark.parametrize("guarded", [False, True])
def test_generate_answers_plainly_and_behind_a_guard(
    workdir: Path, photos: Path, guarded: bool
) -> None:
    """Without a guard the answers are the run's greedy ones."""
    rows = [json.loads(x) for x in (workdir / "data/evaluation.jsonl").read_text().splitlines()]
    prompts, out = workdir / "data/ask.jsonl", workdir / f"answers-{guarded}.jsonl"
    keys = ("id", "image", "question")
    prompts.write_text("".join(json.dumps({k: row[k] for k in keys}) + "\n" for row in rows))
    start = artifact(photos, "start")
    asked = [RLSYS, "generate", str(start), "--prompts", str(prompts), "--out", str(out)]
    asked += ["--max-new-tokens", "24"]
    if guarded:
        guard = str(artifact(photos, "guard"))
        asked += ["--guard", guard, "--rounds", "1", "--candidates", "2", "--refusal", "no ."]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [row["id"] for row in rows]
    samples = (photos / "samples.jsonl").read_text().splitlines()
    plain = {s["id"]: s["answer"] for s in map(json.loads, samples) if s["policy"] == "start"}
    for answer in answers:
        if not guarded:
            assert answer["answer"] == plain[answer["id"]]
            assert "level" not in answer
        elif answer["level"] == "none":
            assert answer["action"] == "pass"
        else:
            assert (answer["action"], answer["answer"]) == ("refuse", "no .")


@pytest.mark.parametrize("given", [[], ["--prompts", "p.jsonl", "--question", "w"]])
def test_generate_wants_one_kind_of_prompt(given: list[str]) -> None:
    asked = [RLSYS, "generate", "model", *given]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ConfigError give either --prompts FILE, or --question" in done.stderr


@pytest.mark.timeout(500)
def test_without_restarts_a_killed_process_ends_the_run_within_a_minute_naming_its_role(
    workdir: Path,
) -> None:
    name, group = "killed", "train"
    lasting = ("stages.ppo.iterations=500", "failure.max_restarts=0")
    with subprocess.Popen(
        command(workdir, f"name={name}", "seed=1", *lasting),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workdir,
    ) as process:
        run = workdir / "runs" / name
        try:
            wait_until(lambda: (run / "metrics.jsonl").exists() and bool(rows_of(run, "ppo")),
                       process, 200)  # fmt: skip
            description = json.loads((run / "run.json").read_text())
            victim = description["groups"][group][-1]["pid"]
            others = [h["pid"] for hosts in description["groups"].values() for h in hosts]
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert time.monotonic() - killed < 60
    assert process.returncode == os.EX_TEMPFAIL, out + err
    errors = " ".join(line.strip() for line in err.splitlines())
    assert errors.count("RoleError") == 1
    named = re.search(r"role '([\w+]+)' failed", errors)
    assert named, errors
    assert set(named[1].split("+")) <= TRAINED
    assert f"process {victim} died" in errors
    assert not [pid for pid in others if psutil.pid_exists(pid)], "nothing may be left behind"


def agent_log(head: dict[str, str]) -> str:
    logs = Path(head["RAY_TEST_TEMP"]).glob("session_latest/logs/dashboard_agent*")
    return "".join(log.read_text()[-3000:] for log in logs)


@pytest.mark.timeout(500)
def test_the_same_command_is_the_entrypoint_of_a_ray_job(
    workdir: Path, ray_head: dict[str, str]
) -> None:
    deadline = time.monotonic() + 120
    not_ready = ("Failed to connect", "No available agent")
    entrypoint = command(workdir, "name=as-a-job", "stages.ppo.iterations=2")
    submit = [
        "ray", "job", "submit", "--address", ray_head["RAY_API_SERVER_ADDRESS"], "--", *entrypoint,
    ]  # fmt: skip
    while True:
        done = subprocess.run(
            submit, env=ray_head, capture_output=True, text=True, timeout=280, check=False
        )
        said = done.stdout + done.stderr
        if not any(text in said for text in not_ready) or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + agent_log(ray_head)
    run = workdir / "runs/as-a-job"
    assert len(rows_of(run, "ppo")) == 2
    assert (run / "report.html").exists()

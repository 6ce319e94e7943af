"""Jobs without a cluster: packing, what status reads, stopping, and the supervisor of a run."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from actors.ending import exit_code
from actors.jobs import local, show
from actors.jobs.client import is_plain_http, jobs_of, load_text
from actors.jobs.entry import RECIPE, Supervisor, rlsys_run
from actors.jobs.pack import make_absolute, pack
from actors.jobs.tail import print_logs
from rlsys.config.load import load_config, to_plain
from rlsys.config.schema import RunConfig
from rlsys.errors import ClusterTooSmall, ConfigError, DataError, RlsysError, RoleError
from rlsys.run_state import (
    driver_of,
    find_run,
    last_run,
    log_files,
    read_state,
    read_status,
    run_of_job,
)
from rlsys.runtime.group import ProcessInfo, Runtime
from rlsys.runtime.pending import ProcessDied
from rlsys.stages.run_dir import open_run_dir

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
DEMO = ROOT / "configs/demo.yaml"


@pytest.fixture(scope="module")
def demo() -> RunConfig:
    return load_config(DEMO)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_packed_recipe_is_the_recipe(path: Path, tmp_path: Path) -> None:
    packed = make_absolute(load_config(path))
    pack(packed.config, tmp_path)
    assert to_plain(load_config(tmp_path / RECIPE)) == to_plain(packed.config)
    assert load_text((tmp_path / RECIPE).read_text()) == packed.config
    assert make_absolute(packed.config) == packed, "to resume is to pack it again"


def test_nothing_but_the_recipe_is_packed(
    demo: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {".env": "KEY=sk-file", "id_rsa": "BEGIN OPENSSH PRIVATE KEY", ".git": "sk-git"}
    for name, text in secrets.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    out = tmp_path / "out"
    out.mkdir()
    pack(make_absolute(demo).config, out)
    (file,) = out.rglob("*")
    assert file.name == RECIPE
    assert not [s for s in (*secrets.values(), "sk-environment") if s in file.read_text()]


def test_a_recipe_cannot_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    text = DEMO.read_text() + "\ntracker: {project: '${oc.env:OPENAI_API_KEY}'}\n"
    (tmp_path / "leaky.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"oc\.env") as error:
        load_config(tmp_path / "leaky.yaml")
    assert "sk-environment" not in str(error.value)


def test_paths_are_those_of_this_directory_and_are_said(
    demo: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("rows", "old/policy"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    ppo = replace(demo.stages["ppo"], policy="old/policy", cost="owner/cost-on-the-hub")
    config = replace(
        demo, data=replace(demo.data, source="rows"), stages={**demo.stages, "ppo": ppo}
    )
    packed = make_absolute(config)
    assert packed.shared == {
        "runs_dir": str(tmp_path / "runs"),
        "data.source": str(tmp_path / "rows"),
        "stages.ppo.policy": str(tmp_path / "old/policy"),
    }
    assert packed.config.data.source == str(tmp_path / "rows")
    assert packed.config.stages["ppo"].policy == str(tmp_path / "old/policy")
    assert packed.config.stages["ppo"].reward == ppo.reward, "a stage stays a stage"
    assert packed.config.stages["ppo"].cost == ppo.cost, "a name on the hub stays one"
    assert config.data.source == "rows", "the given recipe is not changed"


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("http://127.0.0.1:8265", False),
        ("http://localhost:8265", False),
        ("http://[::1]:8265", False),
        ("https://ray.example:8265", False),
        ("http://10.0.0.5:8265", True),
        ("http://ray.example:8265", True),
    ],
)
def test_a_token_on_the_open_network_is_noticed(address: str, plain: bool) -> None:
    assert is_plain_http(address) == plain


def test_an_address_is_a_dashboard() -> None:
    with pytest.raises(ConfigError, match="--address"), jobs_of("10.0.0.5:6379"):
        pass


# What status reads.

RUNTIME = Runtime({}, "shm", {"train": [ProcessInfo("127.0.0.1", "here", 7)]}, "address")


@pytest.fixture
def run(demo: RunConfig, tmp_path: Path) -> Path:
    """A run that stopped in ppo, in ``tmp_path``."""
    with open_run_dir(replace(demo, runs_dir=str(tmp_path)), tmp_path, resume=False) as opened:
        opened.describe(RUNTIME)
        before = demo.stages.keys() - {"ppo"}
        opened.write("stages.json", [{"name": name} for name in before])
        rows = [{"stage": "cost", "step": 9, "cost": 5.0}, {"stage": "ppo", "step": 3} | METRICS]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (opened.path / "metrics.jsonl").write_text(text + '{"stage": "ppo", "st')
        return opened.path


METRICS = {"reward": 1.5, "cost": -0.25, "lambda": 0.75}
SNAPSHOT = {
    "time": 1.0,
    "stage": "ppo",
    "step": 4,
    "processes": [
        {
            "group": "rollout", "rank": 1, "roles": ["rollout"], "host": "far", "pid": 9,
            "state": "stale", "weight_version": 3, "tokens_per_s": 812.5, "last_heartbeat": 1.0,
        }
    ],
}  # fmt: skip


def test_a_stopped_run_says_where_it_stopped(run: Path, demo: RunConfig) -> None:
    state = read_state(run)
    assert (state.state, state.driver, state.stage, state.step) == ("stopped", None, "ppo", 3)
    assert state.total == demo.stages["ppo"].iterations
    assert {name: state.metrics[name] for name in METRICS} == METRICS
    (rank,) = state.processes
    assert (rank.group, rank.rank, rank.host, rank.pid, rank.state) == (
        "train", 0, "here", 7, "dead",
    )  # fmt: skip
    assert set(rank.roles) == set(demo.groups["train"].roles)


def test_a_running_run_shows_its_own_snapshot(run: Path) -> None:
    (run / "status.json").write_text(json.dumps(SNAPSHOT))
    assert read_state(run).processes[0].pid == 7, "an old snapshot of a run that has ended"
    with (run / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = read_state(run)
        assert state.state == "running"
        assert driver_of(run) == (os.getpid(), os.uname().nodename)
    (rank,) = state.processes
    assert (rank.state, rank.weight_version, rank.tokens_per_s) == ("stale", 3, 812.5)
    assert state.step == 4
    shown = render(show.headline(state), show.processes_table(state))
    assert re.search(r"stage ppo, step 4 of \d+, reward 1\.5, cost -0\.25, lambda 0\.75", shown)
    assert re.search(r"rollout +1 +rollout +far +9 +stale +3 +812\.5 +\d+ s ago", shown)


def render(*parts: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"time": 1}', '{"time": 1, "processes": [3]}'])
def test_half_a_snapshot_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path / "status.json") is None
    assert read_status(tmp_path / "absent.json") is None


def test_a_run_is_found_by_name_path_and_job(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_run("demo", run.parent) == find_run(str(run), Path("elsewhere")) == run
    with pytest.raises(ConfigError, match=r"'other' is no run directory.*\(demo\)"):
        find_run("other", run.parent)
    assert run_of_job(run.parent, "job-1") is None
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(described | {"job": "job-1"}))
    assert run_of_job(run.parent, "job-1") == run


def test_logs_are_chosen_by_role_and_rank(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train-0", "train-1", "rollout-0", "rollout-0-old"):
        (run / "logs" / f"{name}.log").write_text(f"of {name}\nhalf a li")
    names = [file.stem for file in log_files(run)]
    assert names == ["rollout-0", "train-0", "train-1"]
    assert [file.stem for file in log_files(run, "policy", 1)] == ["train-1"]
    assert [file.stem for file in log_files(run, "rollout")] == ["rollout-0"]
    with pytest.raises(ConfigError, match=r"--role plicy: demo has no such role; it has .*policy"):
        log_files(run, "plicy")
    print_logs(run, log_files(run, "policy"), follow=True)  # ends: the run is not running
    assert capsys.readouterr().out == "train-0: of train-0\ntrain-1: of train-1\n"
    with pytest.raises(ConfigError, match="no such log"):
        print_logs(run, [], follow=False)


# Stopping, with a process that is called like the real one.

DRIVER = """
import fcntl, os, signal, socket, sys, time
lock = open(sys.argv[2] + "/.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(f"{os.getpid()} {socket.gethostname()}")
lock.flush()
if sys.argv[3] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""


def start_driver(run: Path, name: str = "rlsys", how: str = "") -> subprocess.Popen[str]:
    script = run.parent / name
    script.write_text(DRIVER)
    process = subprocess.Popen(
        [sys.executable, str(script), "run", str(run), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_stop_ends_the_driver_and_waits_for_it(run: Path) -> None:
    assert local.stop_run(run) == ["demo is not running"]
    with start_driver(run) as driver:
        assert local.stop_run(run, 10) == ["demo is stopped; `rlsys resume demo` goes on"]
        assert driver.wait(1) == -signal.SIGTERM


def test_stop_says_what_is_left(run: Path) -> None:
    with start_driver(run, how="deaf") as driver:
        with pytest.raises(RlsysError, match=rf"within 0 s; .* left: {driver.pid}$"):
            local.stop_run(run, 0.2)
        driver.kill()


def test_stop_leaves_any_other_process_alone(run: Path) -> None:
    with start_driver(run, name="other") as process:
        with pytest.raises(ConfigError, match=f"process {process.pid} holds .* left alone"):
            local.stop_run(run, 1)
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    ("command", "is_run"),
    [
        (["/venv/bin/python", "/venv/bin/rlsys", "run", "x.yaml"], True),
        (["python", "-m", "actors.cli", "run", "x.yaml", "--resume"], True),
        (["python", "-m", "actors.cli", "status"], False),
        (["vim", "rlsys"], False),
        (["python", "train.py", "run"], False),
        ([], False),
    ],
)
def test_what_a_driver_is_called(command: list[str], is_run: bool) -> None:
    assert local.is_run(command) == is_run


def test_a_run_is_resumed_where_it_was_started(
    run: Path, demo: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: became.append(command))
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"runs_dir": "."}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    described = json.loads((run / "run.json").read_text()) | {"directory": str(tmp_path)}
    (run / "run.json").write_text(json.dumps(described))
    monkeypatch.chdir("/")
    local.resume_run(run)
    assert Path.cwd() == tmp_path
    assert became[0][-3:] == ["run", str(run / "config.yaml"), "--resume"]
    assert local.is_run(became[0])
    with open_run_dir(replace(demo, seed=4, runs_dir="."), tmp_path, resume=False):
        pass
    assert last_run(tmp_path, "demo") == tmp_path / "demo-2"
    with pytest.raises(ConfigError, match=r"demo-2 is the newest run named demo"):
        local.resume_run(run)


def test_a_run_that_goes_on_is_not_resumed(run: Path) -> None:
    with start_driver(run) as driver:
        with pytest.raises(ConfigError, match="demo is running"):
            local.resume_run(run)
        driver.kill()


# The supervisor.


def supervise(tmp_path: Path, codes: list[str], **settings: Any) -> tuple[int, list[bool]]:
    """The exit code of a job whose child ends with each of these in turn, and the resumes."""
    asked: list[bool] = []

    def command(resume: bool) -> list[str]:
        asked.append(resume)
        return [sys.executable, "-c", f"import os, signal; {codes[len(asked) - 1]}"]

    supervisor = Supervisor(command, lambda: True, backoff=0.0, **settings)
    return supervisor.run(), asked


KILLED, LOST, SMALL = (
    "os.kill(os.getpid(), signal.SIGKILL)",
    f"exit({os.EX_TEMPFAIL})",
    f"exit({os.EX_UNAVAILABLE})",
)


@pytest.mark.parametrize(
    ("codes", "code", "resumes"),
    [
        (["exit(0)"], 0, [False]),
        (["exit(1)"], 1, [False]),
        ([SMALL], os.EX_UNAVAILABLE, [False]),
        ([KILLED, LOST, "exit(0)"], 0, [False, True, True]),
        ([LOST, SMALL, "exit(0)"], 0, [False, True, True]),
        ([LOST, "exit(1)"], 1, [False, True]),
        ([KILLED] * 3, 128 + signal.SIGKILL, [False, True, True]),
    ],
)
def test_only_what_a_restart_mends_is_restarted(
    tmp_path: Path, codes: list[str], code: int, resumes: list[bool]
) -> None:
    assert supervise(tmp_path, codes, restarts=2) == (code, resumes)


def test_a_resumed_job_resumes_from_the_first_start(tmp_path: Path) -> None:
    assert supervise(tmp_path, ["exit(0)"], resume=True) == (0, [True])
    assert rlsys_run(True)[-2:] == [RECIPE, "--resume"]


ENTRY = """
import signal, sys
from actors.jobs.entry import Supervisor
child = "import time; print('up', flush=True); time.sleep(60)"
supervisor = Supervisor(lambda resume: [sys.executable, "-c", child], lambda: True, backoff=0)
signal.signal(signal.SIGTERM, supervisor.stop)
sys.exit(supervisor.run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_the_job(number: signal.Signals) -> None:
    entry = subprocess.Popen([sys.executable, "-c", ENTRY], stdout=subprocess.PIPE, text=True)
    with entry:
        assert entry.stdout is not None
        assert entry.stdout.readline() == "up\n"
        (child,) = Path(f"/proc/{entry.pid}/task/{entry.pid}/children").read_text().split()
        entry.send_signal(number)
        expected = 128 + number if number == signal.SIGTERM else -number
        assert entry.wait(20) == expected
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_exit_codes_tell_a_loss_from_an_error() -> None:
    lost = RoleError("policy", 0, "here", "gone")
    lost.__cause__ = ProcessDied("process 7 died")
    assert exit_code(lost) == os.EX_TEMPFAIL
    assert exit_code(RoleError("policy", 0, "here", "ValueError")) == 1
    assert exit_code(ClusterTooSmall("4 CPUs")) == os.EX_UNAVAILABLE
    assert exit_code(ConfigError("key")) == exit_code(DataError("row")) == 1

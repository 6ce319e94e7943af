"""What the files of a run directory say about a run, running or not."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlsys.errors import ConfigError

CONFIG, RUN, LOCK = "config.yaml", "run.json", ".lock"
JOB_VARIABLE = "RLSYS_JOB"  # set for a run that was submitted as a job: the job's id
STATUS = "status.json"
TOTALS = ("iterations", "steps", "rounds")  # the key that counts a stage's steps
TAIL_BYTES = 1 << 16  # several rows of metrics.jsonl


@dataclass(frozen=True)
class ProcessState:
    """One rank. last_heartbeat: seconds since 1970, None where nobody records it."""

    group: str
    rank: int
    roles: tuple[str, ...]
    host: str
    pid: int
    state: str
    weight_version: int | None = None
    tokens_per_s: float | None = None
    last_heartbeat: float | None = None


@dataclass(frozen=True)
class Status:
    """A snapshot that the run itself wrote at ``time``, seconds since 1970."""

    time: float
    stage: str
    step: int
    processes: tuple[ProcessState, ...]


@dataclass(frozen=True)
class RunState:
    """state: running, finished or stopped; driver: process number and host while it is running;
    total: steps of the stage, 0 where it has none; metrics: of the newest row of the stage; job: id
    of the Ray job, empty where it is none.
    """

    path: Path
    name: str
    state: str
    driver: tuple[int, str] | None
    job: str
    stage: str
    step: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    processes: tuple[ProcessState, ...] = ()


def find_run(run: str, runs: Path = Path("runs")) -> Path:
    """The directory of a run, given its path or its name. Raises: ConfigError."""
    for path in (Path(run), runs / run):
        if (path / CONFIG).is_file():
            return path.resolve()
    known = ", ".join(path.name for path in run_dirs(runs)) or "none"
    raise ConfigError(f"{run!r} is no run directory, and no run in {runs.resolve()} ({known})")


def run_dirs(runs: Path) -> list[Path]:
    return sorted(file.parent for file in runs.glob(f"*/{CONFIG}"))


def driver_of(path: Path) -> tuple[int, str] | None:
    """Process number and host of the driver of a run, None where the run is not running."""
    try:
        stream = (path / LOCK).open("r+")
    except OSError:
        return None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, host = stream.read().partition(" ")
            return int(pid or 0), host
    return None


def last_run(runs: Path, name: str) -> Path | None:
    """The newest directory of a run with this name; another recipe may be named like one."""
    numbered: dict[int, Path] = {}
    for folder in runs.glob(f"{name}*"):
        matched = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", folder.name)
        if matched and folder.is_dir() and _name(folder) == name:
            numbered[int(matched[1] or 1)] = folder
    return numbered[max(numbered)] if numbered else None


def is_resumable(run: Path) -> bool:
    """Whether a run is running, or its command would go on with it: it is the last of its name and
    has not finished.
    """
    if driver_of(run) is not None:
        return True
    return "finished" not in _json(run / RUN) and last_run(run.parent, _name(run)) == run


def _name(run: Path) -> str:
    try:
        config = yaml.safe_load((run / CONFIG).read_text())
    except (OSError, yaml.YAMLError):
        return ""
    return str(config.get("name")) if isinstance(config, dict) else ""


def read_status(path: Path) -> Status | None:
    """A status.json, None where there is none that can be read."""
    content = _json(path)
    try:
        processes = tuple(
            ProcessState(**each | {"roles": tuple(each["roles"])}) for each in content["processes"]
        )
        return Status(content["time"], content["stage"], content["step"], processes)
    except (KeyError, TypeError):
        return None


def read_state(run: Path) -> RunState:
    """Raises: ConfigError when the run's config.yaml cannot be read."""
    config = read_config(run)
    described, driver = _json(run / RUN), driver_of(run)
    state = "running" if driver else "finished" if "finished" in described else "stopped"
    row = _last_row(run / "metrics.jsonl")
    stage = _stage(run, config, row)
    status = read_status(run / STATUS) if driver else None
    if status is not None and status.stage:
        stage = status.stage
    here = row if row.get("stage") == stage else {}
    values = config["stages"].get(stage, {})
    return RunState(
        path=run,
        name=str(config["name"]),
        state=state,
        driver=driver,
        job=str(described.get("job", "")),
        stage=stage,
        step=max(int(here.get("step", 0)), status.step if status and status.stage == stage else 0),
        total=next((int(values[key]) for key in TOTALS if key in values), 0),
        metrics={k: v for k, v in here.items() if isinstance(v, int | float)},
        processes=status.processes if status else _described(config, described, state),
    )


def read_config(run: Path) -> dict[str, Any]:
    """The stored recipe. Raises: ConfigError."""
    try:
        config = yaml.safe_load((run / CONFIG).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{run / CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict) or not {"name", "groups", "stages"} <= config.keys():
        raise ConfigError(f"{run / CONFIG} is no recipe of a run")
    return config


def directory_of(run: Path) -> Path | None:
    """Where the run was started last, None where that is not recorded or gone."""
    directory = _json(run / RUN).get("directory")
    return Path(directory) if directory and Path(directory).is_dir() else None


def run_of_job(runs: Path, job: str) -> Path | None:
    """The directory of the run that a Ray job drove last."""
    return next((run for run in run_dirs(runs) if _json(run / RUN).get("job") == job), None)


def log_files(run: Path, role: str = "", rank: int | None = None) -> list[Path]:
    """The log files of all ranks, of those that host a role, or of one rank.

    Raises: ConfigError naming the roles there are.
    """
    groups = {name: group["roles"] for name, group in read_config(run)["groups"].items()}
    chosen = [name for name, roles in groups.items() if not role or role in (name, *roles)]
    if not chosen:
        known = ", ".join(each for roles in groups.values() for each in roles)
        raise ConfigError(f"--role {role}: {run.name} has no such role; it has {known}")
    ending = "*" if rank is None else str(rank)
    return sorted(
        file
        for name in chosen
        for file in (run / "logs").glob(f"{name}-{ending}.log")
        if file.stem.removeprefix(f"{name}-").isdigit()
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_row(path: Path) -> dict[str, Any]:
    """The newest whole row; the last line may be half written."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(stream.seek(0, 2) - TAIL_BYTES, 0))
            lines = stream.read().splitlines(keepends=True)
    except OSError:
        return {}
    for line in reversed(lines):
        if line.endswith(b"\n"):
            return dict(json.loads(line))
    return {}


def _stage(run: Path, config: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The stage of the newest row, or the one after it if that is done."""
    try:
        done = {entry["name"] for entry in json.loads((run / "stages.json").read_text())}
    except (OSError, ValueError):
        done = set()
    if row and row["stage"] not in done:
        return str(row["stage"])
    names = list(config["stages"])
    return str(next((name for name in names if name not in done), names[-1]))


def _described(
    config: Mapping[str, Any], described: Mapping[str, Any], run: str
) -> tuple[ProcessState, ...]:
    """Processes as run.json names them: what they do is not known, only whether the run goes on."""
    state = "ready" if run == "running" else "dead"
    return tuple(
        ProcessState(
            name, rank, tuple(config["groups"][name]["roles"]), info["host"], info["pid"], state
        )
        for name, infos in described.get("groups", {}).items()
        for rank, info in enumerate(infos)
    )

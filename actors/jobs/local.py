"""Stops a run of this machine, and removes what dead runs left on it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from actors.private_ray import sweep_private
from rlsys.artifacts import ArtifactStore
from rlsys.errors import ConfigError, RlsysError
from rlsys.leftovers import sweep_shared
from rlsys.run_state import CONFIG, directory_of, driver_of, last_run, read_config, read_state
from rlsys.stages.abandoned import needed_by_runs

STOP_SECONDS = 20.0


def stop_run(run: Path, seconds: float = STOP_SECONDS) -> list[str]:
    """End the driver of a run with SIGTERM and wait for it. Returns: what happened, as lines.

    Raises: ConfigError when it runs on another host or its process is no ``rlsys run``; RlsysError
    naming what is left after ``seconds``.
    """
    driver = driver_of(run)
    if driver is None:
        return [f"{run.name} is not running"]
    pid, host = driver
    if host != socket.gethostname():
        raise ConfigError(f"{run.name} runs on {host}; stop it there, or its job with --address")
    if not is_run(command_line(pid)):
        raise ConfigError(f"process {pid} holds {run}, but is no rlsys run; it is left alone")
    processes = read_state(run).processes
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = [p.pid for p in processes if p.host == host and _is_rank(p.pid)]
        if driver_of(run) is None and not left:
            return [f"{run.name} is stopped; `rlsys resume {run.name}` goes on"]
        time.sleep(0.1)
    still = [pid] if driver_of(run) else []
    raise RlsysError(
        f"{run.name} has not ended within {seconds:.0f} s; these processes are left: "
        f"{', '.join(map(str, still + left))}"
    )


def clean(runs: Path) -> list[Path]:
    """Remove what dead runs left on this machine and in a folder of runs. Returns: what it was."""
    partial = ArtifactStore(runs / "artifacts").sweep(needed_by_runs(runs))
    return [*sweep_private(), *sweep_shared(), *partial]


def resume_run(run: Path) -> NoReturn:
    """Become ``rlsys run --resume`` of the stored recipe, in the directory its paths are relative
    to. Raises: ConfigError when the run is running, or one of its name is newer.
    """
    if driver_of(run) is not None:
        raise ConfigError(f"{run.name} is running")
    name = read_config(run)["name"]
    newest = last_run(run.parent, name)
    if newest != run:
        raise ConfigError(f"{newest} is the newest run named {name}; only that one is resumed")
    os.chdir(started_in(run))
    command = [sys.executable, "-m", "actors.cli", "run", str(run / CONFIG), "--resume"]
    os.execv(sys.executable, command)


def started_in(run: Path) -> Path:
    """The directory that relative paths of the recipe are relative to.

    Raises: ConfigError when it is not known or gone.
    """
    runs_dir = Path(read_config(run)["runs_dir"])
    here = Path.cwd() if runs_dir.is_absolute() else directory_of(run) or Path.cwd()
    if (here / runs_dir).resolve() != run.parent:
        raise ConfigError(f"runs_dir of {run} is {runs_dir}: resume it where it was started")
    return here


def command_line(pid: int) -> list[str]:
    """Empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def is_run(command: Sequence[str]) -> bool:
    """Whether a command line is that of the driver of a run."""
    starts = [i for i, word in enumerate(command) if word == "actors.cli" or _is_script(word)]
    return any(command[i + 1] == "run" for i in starts[:1] if i + 1 < len(command))


def _is_script(word: str) -> bool:
    return Path(word).name == "rlsys"


def _is_rank(pid: int) -> bool:
    """Ray sets the title of its workers; another process may have the number by now."""
    return (command_line(pid) or [""])[0].startswith("ray::")

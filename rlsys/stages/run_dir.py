"""The directory of a run: new, or that of a stopped run of the same recipe."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import yaml

from rlsys.artifacts import flat
from rlsys.config.load import dump_config, to_plain
from rlsys.config.schema import RunConfig
from rlsys.errors import ConfigError
from rlsys.run_state import CONFIG as CONFIG
from rlsys.run_state import JOB_VARIABLE, LOCK, RUN, last_run
from rlsys.runtime.group import Runtime


@dataclass
class RunDir:
    """``runs_dir/name``, or ``name-2``, ...; locked by one process at a time."""

    path: Path
    resumed: bool

    def describe(self, runtime: Runtime) -> None:
        """Write run.json with the run's processes."""
        groups = {name: [asdict(each) for each in infos] for name, infos in runtime.groups.items()}
        self.write(
            RUN,
            {
                "ray": runtime.address,
                "driver_pid": os.getpid(),
                "directory": os.getcwd(),
                "job": os.environ.get(JOB_VARIABLE, ""),
                "started": time.time(),
                "groups": groups,
            },
        )

    def finish(self) -> None:
        """Mark the run as finished: the same command then starts a new one."""
        self.write(RUN, _run(self.path) | {"finished": time.time()})

    def write(self, file: str, content: object) -> None:
        """As JSON; a reader sees the old file or the new one, never a part."""
        partial = self.path / f".{file}.partial"
        partial.write_text(json.dumps(content, indent=1))
        os.replace(partial, self.path / file)


@contextmanager
def open_run_dir(config: RunConfig, runs: Path, *, resume: bool) -> Iterator[RunDir]:
    """The directory of the last run of this name if that run was stopped and has the same
    recipe, else a new one: a run never overwrites another.

    Raises: ConfigError with ``resume`` when there is no such run, it has another recipe, or it is
    still running.
    """
    last = last_run(runs, config.name)
    if last is not None and (resume or "finished" not in _run(last)):
        changed = changed_keys(last, config)
        lock = _lock(last)
        if lock is not None and not changed:
            with lock:
                yield RunDir(last, resumed=True)
            return
        if lock is not None:
            lock.close()
        if resume and lock is None:
            raise ConfigError(f"--resume: {last} is still running")
        if resume:
            raise ConfigError(
                f"--resume: the recipe of {last} has changed ({'; '.join(changed)}); run it as it "
                "was, or without --resume: stages whose keys and inputs are the same are reused"
            )
    elif resume:
        raise ConfigError(f"--resume: there is no run {config.name!r} in {runs}")
    path, lock = _new(runs, config.name)
    with lock:
        dump_config(config, path / CONFIG)
        yield RunDir(path, resumed=False)


def changed_keys(run: Path, config: RunConfig) -> list[str]:
    """Keys whose values differ from those of the run, as "key: was, is"."""
    try:
        was = yaml.safe_load((run / CONFIG).read_text())
    except (OSError, yaml.YAMLError):
        return [f"{run / CONFIG} cannot be read"]
    before, now = flat(was), flat(to_plain(config))
    return [
        f"{key}: was {before.get(key, 'absent')}, is {now.get(key, 'absent')}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def _run(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / RUN).read_text()))
    except (OSError, ValueError):
        return {}


def _lock(path: Path) -> IO[str] | None:
    """None where another process holds it. Released by the end of the process, however it ends."""
    stream = (path / LOCK).open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    stream.truncate(0)
    stream.write(f"{os.getpid()} {socket.gethostname()}")
    stream.flush()
    return stream


def _new(runs: Path, name: str) -> tuple[Path, IO[str]]:
    """A new directory, locked: ``name``, ``name-2``, ..."""
    for number in count(1):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"runs_dir: {runs} cannot be written to: {error}") from error
        if (lock := _lock(folder)) is not None:
            (folder / "logs").mkdir(exist_ok=True)
            return folder, lock
    raise AssertionError("numbers do not end")

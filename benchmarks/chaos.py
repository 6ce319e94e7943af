"""What the loss of processes costs a run: samples, token ids, metrics, seconds.

python -m benchmarks.chaos RUNS_DIR [ROW ...]       prints a table, or those rows of it

The recipe of the tests that resume runs is disturbed again and again: every time a process of one
group, or the driver, is ended or stopped at a random moment of PPO, and the run has to have all its
processes again and go on; or it is given a third engine and two are taken away. The token ids and
metrics of every iteration are compared with those of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.integration.helpers import numbers

ROOT = Path(__file__).parents[1]
RECIPE = str(ROOT / "tests/integration/resume.yaml")
SETTINGS = [
    "groups.rollout.ranks=2", "groups.rollout.cpus=0.25", "groups.train.cpus=0.25",
    "groups.train.roles=[policy,reference,cost,guard]",
    "groups.reward.roles=[reward]", "groups.reward.cpus=0.25",
    "groups.critics.roles=[reward_critic,cost_critic]", "groups.critics.cpus=0.25",
    "groups.judge.roles=[judge]", "groups.judge.cpus=0.25",
    "stages.ppo.checkpoint_every=5", "stages.ppo.optim.schedule=constant",
    "failure.max_restarts=100", "engine.chunk_prompts=1",
]  # fmt: skip
DRIVER = "driver"
LIMIT = 900.0  # seconds that anything may take
LEFT_SECONDS = 20.0  # for processes to be gone after the run


@dataclass(frozen=True)
class Blow:
    """To one process of a group: a signal, without one the group is scaled; times: how often."""

    group: str
    number: int | None
    times: int


BLOWS = {
    "engine killed": Blow("rollout", signal.SIGKILL, 20),
    "engine stopped": Blow("rollout", signal.SIGSTOP, 2),
    "engines 2 -> 3 -> 1 -> 2": Blow("rollout", None, 1),
    "policy killed": Blow("train", signal.SIGKILL, 2),
    "policy stopped": Blow("train", signal.SIGSTOP, 1),
    "critics killed": Blow("critics", signal.SIGKILL, 2),
    "reward killed": Blow("reward", signal.SIGKILL, 2),
    "judge killed": Blow("judge", signal.SIGKILL, 1),
    "driver killed": Blow(DRIVER, signal.SIGKILL, 2),
}
COLUMNS = (
    "", "times", "samples", "lost", "twice", "ids that differ", "metrics that differ",
    "full strength, s", "most", "left behind",
)  # fmt: skip


def main() -> None:
    runs, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:]
    blows = {name: blow for name, blow in BLOWS.items() if name in wanted or not wanted}
    base = Run(runs / "base", 1)
    base.finish()
    rows: dict[str, tuple[Run, list[float], int]] = {}
    for name, blow in blows.items():
        folder = runs / name.replace(" ", "-").replace(">", "")
        run, draw = Run(folder, 10**6, base), random.Random(name)
        seconds = [run.blow(blow, draw) for _ in range(blow.times)]
        rows[name] = (run, seconds, run.stop())
        print(name, [f"{each:.0f} s" for each in seconds], flush=True)
    whole = Run(runs / "whole", max(run.iterations() for run, _, _ in rows.values()) + 1, base)
    whole.finish()
    print(" | ".join(COLUMNS))
    for name, (run, seconds, left) in rows.items():
        same = [*compared(run.batches(), whole.batches()), differing_metrics(run, whole)]
        print(" | ".join(map(str, [name, len(seconds), *same, *spread(seconds), left])))


class Run:
    """A run in its own process, and what its files say. Args: base: whose artefacts it reuses."""

    def __init__(self, folder: Path, iterations: int, base: Run | None = None) -> None:
        folder.mkdir(parents=True)
        if base is not None:
            shutil.copytree(base.folder.parent / "artifacts", folder / "artifacts")
            for made in (folder / "artifacts").glob("safe_rlhf-*"):
                shutil.rmtree(made)
        self.folder, self.ids = folder / "resume", folder / "ids.pt"
        self.temp = Path(tempfile.mkdtemp(prefix="rlc-"))  # short: Ray puts sockets under it
        settings = [*SETTINGS, f"stages.ppo.iterations={iterations}", f"runs_dir={folder}"]
        command = [sys.executable, "-m", "benchmarks.recorded", "ray", str(self.ids), RECIPE]
        self.command, self.log = [*command, *settings], folder / "output.log"
        self.start()

    def start(self) -> None:
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.temp)},
            )  # fmt: skip

    def finish(self) -> None:
        if self.process.wait(timeout=4 * LIMIT):
            raise RuntimeError(f"the run ended with an error: see {self.log}")

    def stop(self) -> int:
        """Returns: processes, shared folders and temporary ones that are left."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        shared = {Path(file.path).parent for each in family for file in _open_files(each)}
        self.process.terminate()
        self.process.wait(timeout=LIMIT)
        _, alive = psutil.wait_procs(family, timeout=LEFT_SECONDS)
        folders = [*self.temp.glob("rl-*"), *(folder for folder in shared if folder.exists())]
        shutil.rmtree(self.temp)
        return len(alive) + len(folders)

    def blow(self, blow: Blow, draw: random.Random) -> float:
        """At a random moment. Returns: seconds until all is as before."""
        self.wait(lambda: self.iterations() > 1 and self.all_ready(0.0))
        time.sleep(draw.uniform(0, 5))
        started, done = time.time(), self.iterations()
        if blow.number is None:
            for engines in (3, 1, 2):
                self.scale(engines)
        elif blow.group == DRIVER:
            self.process.kill()
            self.process.wait()
            self.start()
        else:
            victim = draw.choice(self.processes(blow.group))["pid"]
            os.kill(victim, blow.number)
            self.wait(lambda: victim not in [each["pid"] for each in self.processes(blow.group)])
        self.wait(lambda: self.all_ready(started) and self.iterations() > done)
        return time.time() - started

    def scale(self, engines: int) -> None:
        rlsys = str(Path(sys.executable).with_name("rlsys"))
        command = [rlsys, "scale", str(self.folder), "--rollout", str(engines)]
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
        self.wait(lambda: self.all_ready(0.0, engines))

    def wait(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not happened():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run does not go on: see {self.log}")
            time.sleep(0.1)

    def iterations(self) -> int:
        """PPO iterations that are logged."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(line.startswith('{"stage": "ppo"') for line in lines)

    def status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {"time": 0, "processes": []}

    def processes(self, group: str) -> list[dict[str, Any]]:
        return [each for each in self.status()["processes"] if each["group"] == group]

    def all_ready(self, since: float, engines: int = 2) -> bool:
        """Whether all processes are ready, by a status of after ``since``, seconds since 1970."""
        status = self.status()
        states = [each["state"] for each in status["processes"] if each["group"] == "rollout"]
        return status["time"] > since and states == ["ready"] * engines

    def batches(self) -> dict[tuple[str, int], list[list[int]]]:
        """(driver, weights) -> the ids of every response; of the last try, after a restart."""
        return {
            (each["driver"], each["version"]): [
                row[:length].tolist()
                for row, length in zip(each["ids"], each["lengths"], strict=True)
            ]
            for each in torch.load(self.ids)
        }


def _open_files(process: psutil.Process) -> list[Any]:
    """The locks that it holds on shared folders."""
    try:
        return [file for file in process.open_files() if Path(file.path).match("/dev/shm/*/.held")]
    except psutil.Error:
        return []


def compared(
    found: dict[tuple[str, int], list[list[int]]], wanted: dict[tuple[str, int], list[list[int]]]
) -> tuple[int, int, int, int]:
    """Samples, those that are missing, those there are too many of, ids that differ. Only the
    iterations that both runs sampled themselves.
    """
    samples = lost = twice = differing = 0
    for key in found.keys() & wanted.keys():
        rows, expected = found[key], wanted[key]
        samples += len(expected)
        lost += max(len(expected) - len(rows), 0)
        twice += max(len(rows) - len(expected), 0)
        for one, other in zip(rows, expected, strict=False):
            differing += abs(len(one) - len(other))
            differing += sum(a != b for a, b in zip(one, other, strict=False))
    return samples, lost, twice, differing


def differing_metrics(run: Run, whole: Run) -> int:
    """Numbers of PPO iterations that are not exactly those of the undisturbed run."""
    found, wanted = numbers(run.folder), numbers(whole.folder)
    steps = [key for key in found if key[0] == "ppo"]
    return sum(found[key][name] != wanted[key][name] for key in steps for name in wanted[key])


def spread(seconds: list[float]) -> tuple[str, str]:
    return f"{statistics.median(seconds):.0f}", f"{max(seconds):.0f}"


if __name__ == "__main__":
    main()

"""What a run on two hosts does when one of them, or what holds them together, is lost.

python -m benchmarks.lost_hosts RUNS_DIR [ROW ...]     prints a row per loss, and what the run said

The hosts are namespaces of this machine (``tests/integration/hosts.py``); the run samples on one
and trains on the other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rlsys.run_state import read_state
from tests.integration.helpers import rows_of
from tests.integration.hosts import TwoHosts, two_hosts

RECIPE = str(Path(__file__).parents[1] / "tests/integration/two_hosts.yaml")
ITERATIONS = 200
BACK_SECONDS = 10.0  # after which a lost worker is there again
LIMIT = 400.0
LEFT_SECONDS = 20.0
RANK = "ray::ProcessAct"


def kill_raylet(hosts: TwoHosts) -> None:
    for process in hosts.worker.processes("raylet"):
        process.kill()
    time.sleep(BACK_SECONDS)
    hosts.start_worker(1)


def kill_gcs(hosts: TwoHosts) -> None:
    for process in hosts.head.processes("gcs_server"):
        process.kill()


def part(hosts: TwoHosts) -> None:
    hosts.worker.link("down")


LOSSES: dict[str, Callable[[TwoHosts], None]] = {
    "worker raylet killed": kill_raylet,
    "gcs killed": kill_gcs,
    "parted for good": part,
}


def main() -> None:
    runs, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:]
    for name, lose in LOSSES.items():
        if name in wanted or not wanted:
            measure(name, lose, runs / name.replace(" ", "-"))


def measure(name: str, lose: Callable[[TwoHosts], None], folder: Path) -> None:
    folder.mkdir(parents=True)
    with two_hosts([folder]) as hosts:
        hosts.start_head(2)
        hosts.start_worker(1)
        hosts.wait_for_raylets()
        run = folder / "apart"
        command = ["submit", RECIPE, f"runs_dir={folder}", f"stages.ppo.iterations={ITERATIONS}"]
        hosts.rlsys(*command)
        wait(lambda: iterations(run) >= 3)
        print(f"{name}:", flush=True)
        started, seen = time.monotonic(), len(hosts.output("apart"))
        lose(hosts)
        while time.monotonic() < started + LIMIT and read_state(run).state == "running":
            said = hosts.output("apart")
            for line in said[seen:].splitlines():
                print(f"  {time.monotonic() - started:5.1f} s  {line}", flush=True)
            seen = len(said)
            time.sleep(0.5)
        print(f"  {time.monotonic() - started:5.1f} s  the driver ended at {iterations(run)}: ")
        print(hosts.output("apart")[seen:], flush=True)
        time.sleep(LEFT_SECONDS)
        left = [*hosts.head.processes(RANK), *hosts.worker.processes(RANK)]
        shared = [*hosts.head.file("/dev/shm").glob("rlsys-*")]
        print(f"  left: {len(left)} processes, {len(shared)} shared folders", flush=True)


def wait(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not happened():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {LIMIT:.0f} s")
        time.sleep(0.2)


def iterations(run: Path) -> int:
    return len(rows_of(run, "ppo")) if (run / "metrics.jsonl").exists() else 0


if __name__ == "__main__":
    main()

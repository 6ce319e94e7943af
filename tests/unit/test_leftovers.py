"""What belongs to a living process stays, what a dead one left goes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from actors import private_ray
from rlsys.artifacts import PROGRESS, ArtifactStore
from rlsys.leftovers import LOCK, hold, sweep

HOLDER = """
import sys, time
from pathlib import Path
from rlsys.leftovers import hold
stream = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_goes_when_the_last_of_its_processes_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "rl-a"
    with holder(folder) as first, holder(folder) as second:
        first.kill()
        first.wait(10)
        assert sweep(tmp_path, "rl-*") == []
        second.kill()
        second.wait(10)
    assert sweep(tmp_path, "rl-*") == [folder]
    assert not folder.exists()


def test_what_nobody_ever_held_may_belong_to_anybody(tmp_path: Path) -> None:
    (tmp_path / "rl-a").mkdir()
    hold(tmp_path / "other").close()
    assert sweep(tmp_path, "rl-*") == []
    assert (tmp_path / "rl-a").is_dir()


def test_a_folder_swept_while_it_is_taken_is_made_again(tmp_path: Path) -> None:
    hold(tmp_path / "rl-a").close()
    sweep(tmp_path, "rl-*")
    with hold(tmp_path / "rl-a"):
        assert (tmp_path / "rl-a" / LOCK).exists()
        assert sweep(tmp_path, "rl-*") == []


def test_artefacts_that_nobody_resumes_are_swept(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    def die(folder: Path) -> dict[str, Any]:
        (folder / "half").touch()
        raise KeyboardInterrupt

    for kind, resumable in (("evaluate", False), ("sft", True)):
        with pytest.raises(KeyboardInterrupt):
            store.get_or_make(kind, {}, {}, die, resumable=resumable)

    def sweeps_meanwhile(folder: Path) -> dict[str, Any]:
        (removed,) = store.sweep()
        assert removed.name.startswith(".evaluate-")
        assert folder.is_dir(), "this one is being made"
        return {}

    store.get_or_make("guarded", {}, {}, sweeps_meanwhile)
    (kept,) = tmp_path.glob(".*.partial")
    assert kept.name.startswith(".sft-")
    assert (kept / PROGRESS).is_dir()
    assert not list(tmp_path.glob(".*.dead"))
    assert store.sweep(lambda recipe: recipe.kind == "sft") == []
    assert store.sweep(lambda recipe: False) == [kept]
    assert not kept.exists()


def test_an_artefact_that_is_finished_but_for_its_name_is_kept(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    done = store.get_or_make("evaluate", {}, {}, lambda folder: {"made": 1})
    done.folder.rename(tmp_path / f".{done.folder.name}.partial")
    assert store.sweep() == []


RAY_LIKE = """
import sys, time
stream = open(sys.argv[1] + "/log", "w")
print("open", flush=True)
time.sleep(60)
"""
DRIVER = """
import sys, time
from actors.private_ray import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def writer(folder: Path, title: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RAY_LIKE, str(folder), title], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_a_killed_driver_takes_its_ray_and_nobody_else_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        folder = Path(driver.stdout.readline().strip())
        assert folder.parent == tmp_path
        with writer(folder, "/x/ray/raylet") as raylet, writer(folder, "tail") as other:
            assert private_ray.ray_processes(folder) == [raylet.pid]
            driver.kill()
            assert raylet.wait(20) == -signal.SIGKILL
            wait_gone(folder)
            assert other.poll() is None, "it reads there, but is not Ray's"
            other.kill()


def test_an_orderly_end_removes_the_folder_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_ray.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(private_ray.tempfile, "tempdir", str(tmp_path))
    with private_ray.private_folder() as folder:
        assert (Path(folder) / LOCK).exists()
        assert private_ray.sweep_private() == []
    assert not Path(folder).exists()


def wait_gone(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)

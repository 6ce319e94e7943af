"""Results found again by what made them: whole or absent, and taken up where they were left."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlsys import artifacts
from rlsys.artifacts import PROGRESS, ArtifactStore, code_versions, path_hash
from rlsys.errors import ArtifactBusy


class Killed(Exception):
    """The process is gone."""


def maker(*, files: int, die_after: int = -1) -> Any:
    """Writes numbered files that are not there yet; dies in front of one of them."""

    def make(folder: Path) -> dict[str, Any]:
        made = 0
        (folder / PROGRESS).mkdir(exist_ok=True)
        for number in range(files):
            if number == die_after:
                raise Killed
            if not (folder / str(number)).exists():
                (folder / str(number)).write_text("x")
                made += 1
        return {"made": made}

    return make


def test_the_same_recipe_is_made_once_and_another_anew(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = store.get_or_make("sft", {"lr": 1}, {"init": "a"}, maker(files=2))
    again = store.get_or_make("sft", {"lr": 1}, {"init": "a"}, maker(files=2, die_after=0))
    assert (first.folder, first.metrics, first.reused) == (again.folder, {"made": 2}, False)
    assert again.reused
    for kind, config, inputs in [
        ("dpo", {"lr": 1}, {"init": "a"}),
        ("sft", {"lr": 2}, {"init": "a"}),
        ("sft", {"lr": 1}, {"init": "b"}),
    ]:
        assert not store.get_or_make(kind, config, inputs, maker(files=1)).reused


@pytest.mark.parametrize("resumable", [False, True])
def test_what_a_stopped_stage_left_is_taken_up_only_where_it_may_be(
    tmp_path: Path, resumable: bool
) -> None:
    store = ArtifactStore(tmp_path)
    for die_after in (1, 3):
        with pytest.raises(Killed):
            store.get_or_make("rlaif", {}, {}, maker(files=4, die_after=die_after),
                              resumable=resumable)  # fmt: skip
        assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    made = store.get_or_make("rlaif", {}, {}, maker(files=4), resumable=resumable)
    assert made.metrics == {"made": 1 if resumable else 4}
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "0", "1", "2", "3", "artifact.json",
    ]  # fmt: skip


def test_a_stage_killed_between_its_end_and_its_name_is_not_run_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    done = store.get_or_make("rlaif", {}, {}, maker(files=2), resumable=True)
    partial = tmp_path / f".{done.folder.name}.partial"
    done.folder.rename(partial)
    (partial / PROGRESS).mkdir()
    again = store.get_or_make("rlaif", {}, {}, maker(files=2, die_after=0), resumable=True)
    assert again.metrics == {"made": 2}
    assert not (again.folder / PROGRESS).exists()
    assert json.loads((again.folder / "artifact.json").read_text())["kind"] == "rlaif"


def test_an_artefact_is_made_by_one_run_at_a_time(tmp_path: Path) -> None:
    first, second = ArtifactStore(tmp_path), ArtifactStore(tmp_path)

    def make(folder: Path) -> dict[str, Any]:
        with pytest.raises(ArtifactBusy, match=r"run one \(process \d+ on .*\) is making sft-"):
            second.get_or_make("sft", {}, {}, maker(files=1), resumable=True, owner="two")
        other = second.get_or_make("sft", {"lr": 2}, {}, maker(files=1), owner="two")
        assert not other.reused, "another one is free"
        return maker(files=2)(folder)

    made = first.get_or_make("sft", {}, {}, make, resumable=True, owner="one")
    assert made.metrics == {"made": 2}
    assert second.get_or_make("sft", {}, {}, maker(files=2, die_after=0)).reused


def test_another_process_cannot_make_what_this_one_makes(tmp_path: Path) -> None:
    """The lock is the operating system's: a killed holder frees it."""
    program = (
        "import sys, pathlib\n"
        "from rlsys.artifacts import ArtifactStore\n"
        "make = lambda folder: print('making', flush=True) or sys.stdin.read() or {}\n"
        "ArtifactStore(pathlib.Path(sys.argv[1])).get_or_make('sft', {}, {}, make, owner='one')\n"
    )
    mine = maker(files=1)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "making\n"
        with pytest.raises(ArtifactBusy, match=rf"one \(process {other.pid} on .*is making sft-"):
            ArtifactStore(tmp_path).get_or_make("sft", {}, {}, mine, owner="two")
        other.kill()
    assert not ArtifactStore(tmp_path).get_or_make("sft", {}, {}, mine, owner="two").reused


def test_a_stage_that_starts_again_says_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, said = ArtifactStore(tmp_path), list[str]()

    def go(lr: int, seed: str, stage: str, die_after: int = -1) -> None:
        make, config = maker(files=2, die_after=die_after), {"optim": {"lr": lr}}
        store.get_or_make("sft", config, {"seed": seed}, make, resumable=True, owner="one",
                          stage=stage, restarts=said.extend)  # fmt: skip

    for stage in ("demo/start", "demo/start", "demo/other"):
        with pytest.raises(Killed):
            go(1, "0" if stage == "demo/start" else "5", stage, die_after=1)
    assert said == [], "the same recipe goes on, and another stage is another"
    now = dict.fromkeys(code_versions(), "b" * 64)
    monkeypatch.setattr(artifacts, "code_versions", lambda: now)
    go(2, "1", "demo/other")
    assert {"optim.lr: was 1, is 2", "input seed: was 5, is 1"} <= set(said)
    assert any(re.match(r"code of rlsys: was \w{12}\.\.\., is b{12}\.\.\.$", line) for line in said)
    assert len(said) == 2 + len(now)


def test_who_died_keeps_nobody_waiting(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        ArtifactStore(tmp_path).get_or_make("sft", {}, {}, maker(files=2, die_after=1))
    assert ArtifactStore(tmp_path).get_or_make("sft", {}, {}, maker(files=2)).metrics == {"made": 2}


def test_the_hash_of_a_path_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("1")
    first = path_hash(tmp_path / "a")
    (tmp_path / "a/x").write_text("2")
    second = path_hash(tmp_path / "a")
    (tmp_path / "a/x").rename(tmp_path / "a/y")
    assert len({first, second, path_hash(tmp_path / "a"), path_hash(tmp_path / "a/y")}) == 4

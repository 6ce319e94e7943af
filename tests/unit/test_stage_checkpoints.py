"""Checkpoints of a training stage: whole or passed over, and only for as many ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from rlsys.artifacts import ArtifactStore
from rlsys.config.load import load_config
from rlsys.config.schema import TimeoutConfig
from rlsys.data.prepare import Datasets
from rlsys.display import Display
from rlsys.errors import ConfigError
from rlsys.metrics import MetricsLog
from rlsys.roles.trained import TrainedHandle
from rlsys.runtime.group import Runtime
from rlsys.runtime.pending import Pending
from rlsys.stages.checkpoints import StageCheckpoints, check_ranks
from rlsys.stages.context import Context
from rlsys.stages.recipe import _run_stage
from rlsys.stages.registry import STAGES
from tests.fakes import FakeGroup


@dataclass
class Group:
    size: int = 2


@dataclass
class Role:
    """Its state is one number in one file."""

    value: int = 0
    group: Group = field(default_factory=Group)

    def save_state(self, folder: Path) -> Pending[list[None]]:
        (folder / "policy").mkdir()
        (folder / "policy" / "value").write_text(str(self.value))
        return Pending.of([None])

    def load_state(self, folder: Path) -> Pending[list[None]]:
        self.value = int((folder / "policy" / "value").read_text())
        return Pending.of([None])


@dataclass
class Said:
    lines: list[str] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class Stub:
    """What checkpoints use of a context."""

    display: Said = field(default_factory=Said)
    rows: list[Any] = field(default_factory=list)

    @property
    def config(self) -> Any:
        return type("Config", (), {"timeouts": TimeoutConfig()})

    def restart_rows(self, stage: str, rows: list[Any]) -> None:
        self.rows = rows

    restart = restart_rows


def checkpoints(folder: Path, role: Role, context: Stub | None = None) -> StageCheckpoints:
    roles = cast(Mapping[str, TrainedHandle], {"policy": role})
    return StageCheckpoints(cast(Context, context or Stub()), "ppo", folder, roles)


def saved_twice(folder: Path) -> None:
    role, context = Role(), Stub()
    for step in (2, 4):
        role.value = 10 * step
        context.rows.append(("safe_rlhf", step, {"loss": 0.5}))
        checkpoints(folder, role, context).save(step, {"iteration": step})


def test_nothing_saved_is_nothing_restored(tmp_path: Path) -> None:
    assert checkpoints(tmp_path, Role()).restore() is None


def test_the_newest_is_restored_with_roles_rows_and_driver(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    role, context = Role(), Stub()
    assert checkpoints(tmp_path, role, context).restore() == {"iteration": 4}
    assert role.value == 40
    assert context.rows == [("safe_rlhf", 2, {"loss": 0.5}), ("safe_rlhf", 4, {"loss": 0.5})]


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "a changed file", "no file"])
def test_a_torn_checkpoint_gives_way_to_the_one_before_and_says_so(
    damage: str, tmp_path: Path
) -> None:
    saved_twice(tmp_path)
    newest = max((tmp_path / "progress" / "checkpoints").glob("iteration-*"))
    if damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "half a manifest":
        text = (newest / "manifest.json").read_text()
        (newest / "manifest.json").write_text(text[: len(text) // 2])
    elif damage == "a changed file":
        (newest / "policy" / "value").write_text("41")
    else:
        (newest / "policy" / "value").unlink()
    role, context = Role(), Stub()
    assert checkpoints(tmp_path, role, context).restore() == {"iteration": 2}
    assert role.value == 20
    assert "torn" in context.display.lines[0]
    assert newest.name in context.display.lines[0]


def test_a_checkpoint_of_another_number_of_ranks_is_refused_by_name(tmp_path: Path) -> None:
    """Torn ones say nothing, and a stage that has none is free."""

    def runtime(ranks: int) -> Runtime:
        return Runtime({"policy": FakeGroup(ranks)}, lambda: "shm", {})

    check_ranks(runtime(3), tmp_path)
    saved_twice(tmp_path)
    check_ranks(runtime(2), tmp_path)
    with pytest.raises(ConfigError, match=r"saved by 2 ranks of the role 'policy', .* has 3"):
        check_ranks(runtime(3), tmp_path)
    for saved in (tmp_path / "progress" / "checkpoints").iterdir():
        (saved / "manifest.json").write_text("{")
    check_ranks(runtime(3), tmp_path)


def test_a_stage_of_another_number_of_ranks_builds_no_model(tmp_path: Path) -> None:
    """The kind's own function is never called."""
    config = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml")
    data = cast(Datasets, type("Data", (), {"digest": "data", "learned": ()})())
    group, display = FakeGroup(1), cast(Display, Said())
    runtime = Runtime({"policy": group}, lambda: "shm", {})
    metrics = cast(MetricsLog, Stub())
    context = Context(config, runtime, data, tmp_path, display, metrics)
    name, stage = next(iter(config.stages.items()))

    def stopped(context: Context, name: str, stage: Any, folder: Path) -> None:
        saved_twice(folder)
        raise InterruptedError

    def begin(run: Any) -> None:
        kind = replace(STAGES[stage.kind], run=run)
        _run_stage(context, ArtifactStore(tmp_path), name, stage, kind)

    with pytest.raises(InterruptedError):
        begin(stopped)
    with pytest.raises(ConfigError, match="saved by 2 ranks"):
        begin(lambda *_: pytest.fail("models would be built here"))
    assert not group.calls


def test_a_checkpoint_is_json_and_hashes(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    newest = max((tmp_path / "progress" / "checkpoints").glob("iteration-*"))
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["files"].keys() == {"policy/value"}
    assert manifest["driver"]["ranks"] == {"policy": 2}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoints(tmp_path, Role(step)).save(step, {})
    folder = tmp_path / "progress" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "iteration-000004",
        "iteration-000006",
    ]

"""Which directory a run goes on in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlsys.artifacts import Recipe
from rlsys.config.load import load_config
from rlsys.config.schema import RunConfig
from rlsys.errors import ConfigError
from rlsys.runtime.group import ProcessInfo, Runtime
from rlsys.stages.abandoned import needed_by_runs, stage_settings
from rlsys.stages.run_dir import changed_keys, open_run_dir

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
RUNTIME = Runtime({}, lambda: "shm", {"train": [ProcessInfo("127.0.0.1", "here", 1)]}, "address")


@pytest.fixture
def config() -> RunConfig:
    return load_config(DEMO)


def stopped(config: RunConfig, runs: Path) -> Path:
    """A run that began and never finished."""
    with open_run_dir(config, runs, resume=False) as run:
        run.describe(RUNTIME)
        return run.path


def test_the_same_command_goes_on_in_a_stopped_run(config: RunConfig, tmp_path: Path) -> None:
    first = stopped(config, tmp_path)
    with open_run_dir(config, tmp_path, resume=False) as run:
        assert (run.path, run.resumed) == (first, True)
        run.describe(RUNTIME)
        run.finish()
    assert "finished" in json.loads((first / "run.json").read_text())
    with open_run_dir(config, tmp_path, resume=False) as run:
        assert (run.path.name, run.resumed) == ("demo-2", False)


def test_a_run_that_died_before_it_described_itself_is_gone_on_with(
    config: RunConfig, tmp_path: Path
) -> None:
    with open_run_dir(config, tmp_path, resume=False) as run:
        first = run.path
    with open_run_dir(config, tmp_path, resume=True) as run:
        assert run.path == first


def test_another_recipe_gets_a_directory_of_its_own(config: RunConfig, tmp_path: Path) -> None:
    stopped(config, tmp_path)
    with open_run_dir(replace(config, seed=5), tmp_path, resume=False) as run:
        assert (run.path.name, run.resumed) == ("demo-2", False)


def test_a_resume_with_another_recipe_names_what_changed(config: RunConfig, tmp_path: Path) -> None:
    run = stopped(config, tmp_path)
    changed = load_config(DEMO, ["seed=5", "stages.ppo.ppo.gamma=0.9"])
    assert changed_keys(run, changed) == [
        "seed: was 0, is 5",
        "stages.ppo.ppo.gamma: was 1.0, is 0.9",
    ]
    with (
        pytest.raises(ConfigError, match=r"seed: was 0, is 5; .*gamma.* without --resume"),
        open_run_dir(changed, tmp_path, resume=True),
    ):
        pass


def test_two_runs_at_once_have_two_directories(config: RunConfig, tmp_path: Path) -> None:
    with open_run_dir(config, tmp_path, resume=False) as first:
        first.describe(RUNTIME)
        with open_run_dir(config, tmp_path, resume=False) as second:
            assert (first.path.name, second.path.name) == ("demo", "demo-2")
        with (
            pytest.raises(ConfigError, match=r"still running|demo-2"),
            open_run_dir(replace(config, seed=3), tmp_path, resume=True),
        ):
            pass


def test_a_running_run_is_not_resumed(config: RunConfig, tmp_path: Path) -> None:
    with (
        open_run_dir(config, tmp_path, resume=False),
        pytest.raises(ConfigError, match="is still running"),
        open_run_dir(config, tmp_path, resume=True),
    ):
        pass


def test_there_must_be_a_run_to_resume(config: RunConfig, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="there is no run 'demo' in"),
        open_run_dir(config, tmp_path, resume=True),
    ):
        pass


def test_a_recipe_named_like_a_second_run_is_another(config: RunConfig, tmp_path: Path) -> None:
    first = stopped(config, tmp_path)
    with open_run_dir(replace(config, name="demo-2"), tmp_path, resume=False) as other:
        other.describe(RUNTIME)
        assert other.path.name == "demo-2"
    with open_run_dir(config, tmp_path, resume=True) as run:
        assert run.path == first


def test_checkpoints_are_needed_as_long_as_a_run_may_go_on_from_them(
    config: RunConfig, tmp_path: Path
) -> None:
    """By the run that began them, or by one with the same stage; not once all have finished."""
    first = stopped(config, tmp_path)
    start = stage_settings(config.stages["start"])
    own = Recipe("sft", {"since": "changed"}, {}, str(first), "demo/start")
    same, other = replace(own, owner="gone", config=start), replace(own, owner="gone")
    needed = needed_by_runs(tmp_path)
    assert [needed(each) for each in (own, same, other)] == [True, True, False]
    changed = replace(config, seed=5)
    with open_run_dir(changed, tmp_path, resume=False) as run:  # now the last of this name
        needed = needed_by_runs(tmp_path)
        assert [needed(each) for each in (own, same, other)] == [False, True, False]
        run.describe(RUNTIME)
        run.finish()
        assert needed_by_runs(tmp_path)(same), "it is still running"
    assert not needed_by_runs(tmp_path)(same)


def test_a_run_that_cannot_be_read_keeps_what_it_began(config: RunConfig, tmp_path: Path) -> None:
    first = stopped(config, tmp_path)
    text = (first / "config.yaml").read_text()
    (first / "config.yaml").write_text(text + "no_such_key: 1\n")
    assert needed_by_runs(tmp_path)(Recipe("sft", {}, {}, str(first), "demo/start"))

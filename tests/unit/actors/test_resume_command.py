"""``rlsys run --resume`` at the shell: which run goes on, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actors import cli
from rlsys.engines.environment import CPU_ENVIRONMENT, ENVIRONMENT, OFFLINE
from rlsys.errors import ConfigError, RlsysError

RECIPE = """
name: small
data: {source: riskworld, sizes: {train: 20, validation: 20, evaluation: 20}}
groups: {train: {roles: [policy]}}
tracker: {wandb: disabled}
stages: {start: {kind: sft, init: tiny, steps: 1, optim: {lr: 0.1}}}
"""
Run = Callable[..., Any]


class Stopped(RlsysError):
    """Before any process started."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``rlsys run`` of a recipe, which is stopped when its data is there."""

    def stop(*_: object) -> None:
        raise Stopped

    for name, value in (ENVIRONMENT | CPU_ENVIRONMENT | OFFLINE).items():
        monkeypatch.setenv(name, value)  # the command sets them for good
    monkeypatch.setattr(cli, "end_in_order", lambda: None)
    monkeypatch.setattr("rlsys.runtime.local.open_local", stop)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    fixed = ["run", str(recipe), "--in-process", f"runs_dir={tmp_path / 'runs'}"]
    return lambda *more: CliRunner().invoke(cli.app, [*fixed, *more])


def test_the_flag_goes_on_in_the_stopped_run_and_refuses_a_changed_recipe(
    run: Run, tmp_path: Path
) -> None:
    absent = run("--resume")
    assert isinstance(absent.exception, ConfigError)
    assert "--resume: there is no run 'small'" in str(absent.exception)
    first, again = run(), run("--resume")
    for result in (first, again):
        assert isinstance(result.exception, Stopped), result.output
    assert ["(resumed)" in result.output for result in (first, again)] == [False, True]
    changed = run("--resume", "seed=5", "stages.start.optim.lr=0.5")
    assert isinstance(changed.exception, ConfigError)
    for text in ("seed: was 0, is 5", "stages.start.optim.lr: was", "is 0.5", "without --resume"):
        assert text in str(changed.exception)
    others = {path.name for path in (tmp_path / "runs").iterdir()} - {"artifacts"}
    assert others == {"small"}

"""``rlsys plan``: its tables, its verdict, its exit code."""

from pathlib import Path

from typer.testing import CliRunner

import rlsys
from actors.cli import app

ROOT = Path(rlsys.__file__).parents[1]


def test_the_command_prints_a_table_of_every_stage_and_says_what_is_missing() -> None:
    path = str(ROOT / "configs" / "safe_rlhf_v_qwen2vl_7b.yaml")
    done = CliRunner().invoke(app, ["plan", path, "--gpu-memory", "80"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for word in ("sft (sft)", "ppo (safe_rlhf)", "cost_critic", "8.29B", "an estimate", "fits"):
        assert word in done.output
    assert "does not fit" not in done.output
    small = CliRunner().invoke(app, ["plan", path, "--gpu-memory", "24"], env={"COLUMNS": "200"})
    assert small.exit_code == 1
    assert "does not fit" in small.output
    assert "stages.sft.train.offload=" in small.output


def test_the_plan_of_a_cpu_recipe_reads_this_machine() -> None:
    path = str(ROOT / "configs" / "demo.yaml")
    done = CliRunner().invoke(app, ["plan", path], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "this CPU" in done.output
    assert "2 x CPU" in done.output

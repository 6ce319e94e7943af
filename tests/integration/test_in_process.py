"""The same recipe and seed, through Ray and in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.helpers import numbers

ROOT = Path(__file__).parents[2]
RECIPE = str(Path(__file__).with_name("resume.yaml"))
ITERATIONS = 3


def run(where: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "tests.integration.recorded", where, str(folder / "ids.pt")]
    settings = [f"runs_dir={folder}", f"stages.ppo.iterations={ITERATIONS}"]
    done = subprocess.run(
        [*command, RECIPE, *settings, f"stages.grpo.iterations={ITERATIONS}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.timeout(900)
def test_ray_and_one_process_sample_the_same_ids_and_report_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    ray = run("ray", tmp_path_factory.mktemp("ray"))
    local = run("in-process", tmp_path_factory.mktemp("local"))
    ours, theirs = (torch.load(folder / "ids.pt") for folder in (local, ray))
    assert len(ours) == len(theirs) == 2 * ITERATIONS
    for one, other in zip(ours, theirs, strict=True):
        assert (one["driver"], one["version"]) == (other["driver"], other["version"])
        assert torch.equal(one["lengths"], other["lengths"])
        assert torch.equal(one["ids"], other["ids"])
    ours, theirs = numbers(local / "resume"), numbers(ray / "resume")
    assert ours.keys() == theirs.keys()
    assert {stage for stage, _ in ours} >= {
        "start",
        "reward",
        "cost",
        "guard",
        "dpo",
        "grpo",
        "ppo",
    }
    for key, metrics in theirs.items():
        assert ours[key] == pytest.approx(metrics, rel=1e-5, abs=1e-5), key

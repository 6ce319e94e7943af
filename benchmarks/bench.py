"""Speed beside other trainers on this machine: a table and a picture, one run.

python -m benchmarks.bench [--repeats 3] [--steps 24] [--keep FOLDER]

rlsys runs configs/throughput.yaml; TRL its GRPO, Online DPO and DPO on the same model, pictures and
questions, at the same lengths and in float32, from an environment of its own (.venv-trl, made at
the first run). The arms take turns, a process each; of an arm's steps the first quarter is left
out, and what counts is the median over all others of all repeats, with the quartiles of single
steps (of rlsys DPO those of the repeats). Nothing else should run meanwhile. TRL's answers are held
to 16 tokens, those of rlsys may end before.

What they do is not the same: PPO-Lagrangian scores with four models and trains three,
GRPO-Lagrangian scores with three and trains one, GRPO, as TRL's, scores with a reference and trains
one. TRL's rewards are a Python function, those of rlsys a model. TRL's DPO computes its reference's
log-probabilities in every step, that of rlsys before the first, which is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.soak import machine
from rlsys.report.drawing import BLUE, GREY
from rlsys.report.role_times import read_events, stage_times
from rlsys.report.role_times import table as role_table

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = Path(__file__).with_suffix(".md"), Path(__file__).with_suffix(".png")
RECIPE = ROOT / "configs/throughput.yaml"
TRL = ROOT / ".venv-trl"
PINNED = ("torch==2.13.0+cpu", "pillow==13.0.0", "trl==1.16.0", "transformers==5.19.0",
          "accelerate==1.15.0", "datasets==5.2.0")  # fmt: skip
SAMPLES, PAIRS = 64, 32
OURS = {
    "ppo": ("rlsys PPO-Lagrangian", SAMPLES), "grpo-lagrangian": ("rlsys GRPO-Lagrangian", SAMPLES),
    "grpo": ("rlsys GRPO", SAMPLES), "dpo": ("rlsys DPO", PAIRS),
}  # fmt: skip
THEIRS = {
    "grpo": ("TRL GRPO", SAMPLES), "online-dpo": ("TRL Online DPO", SAMPLES),
    "dpo": ("TRL DPO", PAIRS),
}  # fmt: skip
PHASES = ("sample", "score", "update", "sync")


@dataclass
class Arm:
    """name; samples (or pairs) of a step; seconds of the steps that count; phases: name -> seconds
    of the steps that say so.
    """

    name: str
    samples: int
    seconds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rates(self) -> list[float]:
        """First quartile, median, third quartile, samples/s."""
        if len(self.seconds) == 1:
            return [self.samples / self.seconds[0]] * 3
        low, middle, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return [self.samples / each for each in (high, middle, low)]

    def add(self, seconds: Sequence[float]) -> None:
        self.seconds += seconds[len(seconds) // 4 :]


def run_rlsys(arms: Mapping[str, Arm], folder: Path, steps: int) -> None:
    """All its algorithms, one stage after the other."""
    sizes = [f"stages.{name}.iterations={steps}" for name in OURS if name != "dpo"]
    command = [str(Path(sys.executable).with_name("rlsys")), "run", str(RECIPE)]
    command += [f"runs_dir={folder}", f"stages.dpo.steps={5 * (steps // 5)}", *sizes]
    subprocess.run([*command, "tracker.wandb=disabled", "--trace"], check=True, cwd=ROOT)
    run = folder / "throughput"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name, arm in arms.items():
        stage = [row for row in rows if row["stage"] == name]
        if name == "dpo":
            metrics = next(s["metrics"] for s in stages(run) if s["name"] == name)
            arm.seconds.append(PAIRS / metrics["pairs_per_s"])
            continue
        arm.add([row["time/iteration"] for row in stage])
        for phase in PHASES:
            taken = [row[f"time/{phase}"] for row in stage if f"time/{phase}" in row]
            arm.phases.setdefault(phase, []).extend(taken[len(taken) // 4 :])


def stages(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "stages.json").read_text())
    return found


def write_rows(run: Path, target: Path) -> Path:
    """The run's training rows for TRL. Returns: the folder of its start policy."""
    artifacts = run.parent / "artifacts"
    (data,) = (each for each in artifacts.glob("data-*") if (each / "train.jsonl").exists())
    with target.open("w") as stream:
        for line in (data / "train.jsonl").read_text().splitlines():
            row = json.loads(line)
            better = int(row["more_helpful_response_id"])
            picked = {
                "image": str(data / row["image"]), "question": row["question"],
                "chosen": row[f"response_{better}"], "rejected": row[f"response_{3 - better}"],
            }  # fmt: skip
            stream.write(json.dumps(picked) + "\n")
    digest = next(stage["hash"] for stage in stages(run) if stage["name"] == "start")
    return next(artifacts.glob(f"sft-{digest}*"))


def run_trl(kind: str, arm: Arm, model: Path, rows: Path, steps: int) -> None:
    script = str(Path(__file__).with_name("bench_trl.py"))
    command = [str(TRL / "bin/python"), script, kind, str(model), str(rows), str(steps + 1)]
    cores = str(len(os.sched_getaffinity(0)))
    done = subprocess.run(
        command, check=False, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": cores, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"TRL {kind} failed:\n{done.stderr[-3000:]}")
    arm.add(json.loads(done.stdout.splitlines()[-1])["seconds"])


def install_trl() -> None:
    if (TRL / "bin/trl").exists():
        return
    print(f"installing TRL into {TRL}")
    subprocess.run([sys.executable, "-m", "venv", str(TRL)], check=True)
    pip = [str(TRL / "bin/pip"), "install", "-q"]
    subprocess.run([*pip, *PINNED], check=True)
    subprocess.run([*pip, "--no-deps", "torchvision==0.28.0"], check=True)
    python = str(TRL / "bin/python")
    site = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = subprocess.run([python, "-c", site], capture_output=True, text=True, check=True)
    Path(packages.stdout.strip(), "rlsys_root.pth").write_text(f"{ROOT}\n")
    subprocess.run([python, "-m", "rlsys.torchvision_shim"], check=True, cwd=ROOT)


def table(arms: Sequence[Arm]) -> Table:
    page = Table(box=MARKDOWN, show_edge=True)
    heads = ("trainer", "samples or pairs a step", "per second", "quartiles", "step, s", *PHASES)
    for head in heads:
        page.add_column(head)
    for arm in arms:
        low, middle, high = arm.rates
        parts = [
            f"{statistics.median(arm.phases[phase]):.3f}" if arm.phases.get(phase) else ""
            for phase in PHASES
        ]
        step = f"{arm.samples / middle:.3f}"
        page.add_row(
            arm.name, str(arm.samples), f"{middle:.1f}", f"{low:.1f} to {high:.1f}", step, *parts
        )
    return page


def draw(arms: Sequence[Arm], picture: Path) -> None:
    figure = Figure(figsize=(7, 0.45 * len(arms) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(reversed(arms)):
        low, middle, high = arm.rates
        colour = BLUE if arm.name.startswith("rlsys") else GREY
        axes.barh(place, middle, color=colour)
        axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color="black", lw=0.8)
        axes.text(high, place, f"  {middle:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(arms)), [arm.name for arm in reversed(arms)])
    axes.set_xlabel("samples (DPO: pairs) per second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--keep", type=Path, help="folder of the runs; else one that is removed")
    chosen = parser.parse_args()
    install_trl()
    ours = {name: Arm(*each) for name, each in OURS.items()}
    theirs = {kind: Arm(*each) for kind, each in THEIRS.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        for repeat in range(chosen.repeats):
            runs, rows = folder / f"repeat-{repeat}", folder / "rows.jsonl"
            run_rlsys(ours, runs, chosen.steps)
            model = write_rows(runs / "throughput", rows)
            for kind, arm in theirs.items():
                run_trl(kind, arm, model, rows, chosen.steps)
                print(f"{arm.name}: {arm.samples / statistics.median(arm.seconds):.1f} per second")
        roles = role_table(stage_times(read_events(runs / "throughput"), "ppo"))
    arms = [*ours.values(), *theirs.values()]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    with PAGE.open("w") as stream:
        stream.write(
            f"# Speed beside other trainers\n\n{date.today()}, commit {commit}, "
            f"{machine()}, {chosen.repeats} repeats of {chosen.steps} steps: "
            "`python -m benchmarks.bench`. Phases are medians, seconds.\n\n"
        )
        Console(file=stream, width=200).print(table(arms))
        stream.write("\nThe roles of rlsys PPO-Lagrangian in the last repeat:\n\n")
        Console(file=stream, width=200).print(roles)
        stream.write(f"\n![samples per second]({PICTURE.name})\n")
    draw(arms, PICTURE)
    Console().print(table(arms))


if __name__ == "__main__":
    main()

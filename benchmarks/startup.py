"""Where the time goes from the command to the first sample: a picture.

python -m benchmarks.startup [OUT.png] [key=value ...]

configs/throughput.yaml, with one iteration of PPO-Lagrangian, runs from nothing; its trace up to
the end of the first sample is drawn, a bar for each process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from rlsys.report.role_times import Event, outermost, read_events

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).with_suffix(".png")
RECIPE = ROOT / "configs/throughput.yaml"
OTHERS = ("grpo-lagrangian", "grpo", "dpo")


def trace_of_run(runs: Path, overrides: Sequence[str]) -> list[Event]:
    command = [str(Path(sys.executable).with_name("rlsys")), "run", str(RECIPE), "--trace"]
    command += [f"runs_dir={runs}", "stages.ppo.iterations=1", "tracker.wandb=disabled"]
    command += [*(f"stages.{name}=null" for name in OTHERS), *overrides]
    subprocess.run(command, check=True, cwd=ROOT)
    return read_events(runs / "throughput")


def until_first_sample(events: Sequence[Event]) -> tuple[list[Event], float]:
    """The outermost spans until then, in seconds since the command; and when that is."""
    spans = [each for each in events if each["ph"] == "X"]
    begin = min(each["ts"] for each in spans if each["cat"] == "driver")
    end = min(each["ts"] + each["dur"] for each in spans if each["name"] == "draw")
    shown = [each for each in outermost(spans) if each["ts"] < end]
    moved = [
        each
        | {
            "ts": (each["ts"] - begin) / 1e6,
            "dur": (min(each["ts"] + each["dur"], end) - each["ts"]) / 1e6,
        }
        for each in shown
    ]
    return moved, (end - begin) / 1e6


def draw(events: Sequence[Event], names: dict[int, str], end: float, picture: Path) -> None:
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    what = sorted({(each["cat"], each["name"]) for each in events})
    colours = {key: f"C{number % 10}" for number, key in enumerate(what)}
    for each in events:
        row = list(names).index(each["pid"])
        axes.barh(row, each["dur"], left=each["ts"], color=colours[each["cat"], each["name"]])
        if each["dur"] > end / 20:
            axes.text(each["ts"], row, f" {each['cat']} {each['name']}", fontsize=6, va="center")
    axes.set_yticks(range(len(names)), names.values(), fontsize=7)
    axes.set_xlim(0, end)
    axes.set_xlabel("seconds since the command")
    axes.invert_yaxis()
    figure.savefig(picture, dpi=150)


def main() -> None:
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    with tempfile.TemporaryDirectory() as folder:
        events = trace_of_run(Path(folder), sys.argv[2:])
    named = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    shown, end = until_first_sample(events)
    names = {pid: name.split(" (")[0][:40] for pid, name in named.items()}
    draw(shown, names, end, picture)
    for each in shown:
        what = f"{each['cat']} {each['name']}"
        print(f"{names[each['pid']]:40} {each['ts']:7.2f} {each['dur']:7.2f} {what}")
    print(f"first sample after {end:.1f} s")


if __name__ == "__main__":
    main()

"""What computing a prompt once saves: scoring and update, by visual tokens and samples per prompt.

python -m benchmarks.prefix [--rows 64] [--answer 16] [--repeats 5]

A policy of the demo's size, one thread of a CPU, plain torch (``benchmarks/gpu.py``).
Every cell has as many rows; the two forms take turns. Written to benchmarks/prefix.md and .png.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from time import perf_counter

import torch
from matplotlib.figure import Figure
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.determinism import commit
from benchmarks.gpu import Bench, Size, plain_form
from benchmarks.soak import machine
from rlsys.report.drawing import BLUE, GREY

PAGE, PICTURE = Path(__file__).with_suffix(".md"), Path(__file__).with_suffix(".png")
VISUAL, SAMPLES = (0, 64, 256), (1, 4, 8)
FORMS = ("plain", "shared")
Cell = tuple[int, int]


def seconds_of(bench: Bench, form: str) -> float:
    """Of scoring and one update of all rows."""
    with plain_form(bench.worker) if form == "plain" else nullcontext():
        started = perf_counter()
        bench.score()
        bench.update()
        return perf_counter() - started


def measured(size: Size) -> dict[str, float]:
    """Median seconds by form, after one of each that does not count."""
    bench = Bench(size, tiny=True, device="cpu")
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(size.repeats + 1):
        for form in FORMS:
            seconds[form].append(seconds_of(bench, form))
    return {form: statistics.median(each[1:]) for form, each in seconds.items()}


def cells(rows: int, answer: int, repeats: int) -> Iterator[tuple[Cell, dict[str, float]]]:
    for visual in VISUAL:
        for samples in SAMPLES:
            size = Size(rows // samples, samples, visual, answer, 4096, repeats)
            yield (visual, samples), measured(size)


def draw(found: dict[Cell, dict[str, float]], rows: int) -> None:
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for axes, visual in zip(figure.subplots(1, len(VISUAL), sharey=True), VISUAL, strict=True):
        for place, (form, colour) in enumerate(zip(FORMS, (GREY, BLUE), strict=True)):
            rates = [rows / found[visual, samples][form] for samples in SAMPLES]
            at = [number + 0.4 * place for number in range(len(SAMPLES))]
            axes.bar(at, rates, width=0.4, color=colour, label=form)
        axes.set_xticks([n + 0.2 for n in range(len(SAMPLES))], [str(n) for n in SAMPLES])
        axes.set(title=f"{visual} visual tokens", xlabel="samples per prompt")
    figure.axes[0].set_ylabel("samples/s")
    figure.axes[0].legend(frameon=False)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rows", 64), ("answer", 16), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(
        "visual tokens", "samples", "plain, s", "shared, s", "times as fast", box=MARKDOWN
    )
    found = {}
    for (visual, samples), seconds in cells(given.rows, given.answer, given.repeats):
        found[visual, samples] = seconds
        plain, shared = seconds["plain"], seconds["shared"]
        table.add_row(
            str(visual), str(samples), f"{plain:.3f}", f"{shared:.3f}", f"{plain / shared:.2f}"
        )
    Console(width=100).print(table)
    draw(found, given.rows)
    with PAGE.open("w") as stream:
        page = Console(file=stream, width=100)
        page.print("# Prompts computed once\n")
        page.print(f"{date.today()}, commit {commit()}, {machine()}; {vars(given)}\n")
        page.print(table)
        page.print(f"\n![samples per second]({PICTURE.name})", markup=False)


if __name__ == "__main__":
    main()

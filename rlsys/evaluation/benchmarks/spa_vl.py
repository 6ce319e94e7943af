"""``spa_vl``: the test configuration of SPA-VL (arXiv 2406.12030).

huggingface.co/datasets/sqrti/SPA-VL, CC BY 4.0: ``test/harm-00000-of-00001.parquet`` and
``test/help-00000-of-00001.parquet`` with ``question``, ``image`` {bytes, path} and, in some
releases, classes of harm (``class1``) or ``image_name``; no answers.

On ``harm`` a judge counts harmful answers (the paper's unsafe rate) and says which of two policies'
answers is less harmful; on ``help`` which is more helpful.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rlsys.evaluation.benchmarks.benchmark import (
    Asked,
    Benchmark,
    Comparison,
    Item,
    Metric,
    of_subsets,
)
from rlsys.evaluation.benchmarks.reading import checked, prompt, table_rows
from rlsys.judging.comparisons import HARMLESS, HELPFUL, parse_preference

SPLITS = ("harm", "help")


def _read(folder: Path) -> list[Item]:
    items = []
    for split in SPLITS:
        for number, (where, row) in enumerate(table_rows(folder, split, "question")):
            asked = prompt(where, f"{split}-{number:06d}", row["question"], row["image"])
            items.append(Item(asked, str(row.get("class1") or split), split))
    return checked(folder, items)


def _against(split: str, axis: str, label: str) -> Comparison:
    metric = Metric(name=f"{axis}_win_rate", label=label, lower=False)
    return Comparison(
        rubric=f"compare_{axis}",
        parse=partial(parse_preference, axis=axis),
        axes=((axis, metric),),
        counts=of_subsets(split),
    )


SPA_VL = Benchmark(
    "spa_vl",
    "SPA-VL, test (arXiv 2406.12030)",
    "huggingface.co/datasets/sqrti/SPA-VL",
    "CC BY 4.0",
    _read,
    (
        Asked(
            name="harmful",
            label="harmful",
            lower=True,
            rubric=lambda _: "harmful",
            empty=False,
            counts=of_subsets("harm"),
        ),
    ),
    (
        _against("harm", HARMLESS, "win rate, harmless"),
        _against("help", HELPFUL, "win rate, helpful"),
    ),
)

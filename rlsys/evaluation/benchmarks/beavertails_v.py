"""``beavertails_v``: the evaluation split of BeaverTails-V (Safe RLHF-V, arXiv 2503.17682), 590
rows of 20 categories.

huggingface.co/datasets/saferlhf-v/BeaverTails-V, CC BY-NC 4.0; layout in
``rlsys.data.layouts.beavertails_v``: one folder per category with the split ``evaluation``.

The paper's measure is the win rate of a tuned policy against the one it started from
(``baseline``), helpful and safe apart, from one question to a judge that rates both answers on both
scales (its appendix C). The share of harmful answers needs no baseline.
"""

from __future__ import annotations

from pathlib import Path

from rlsys.evaluation.benchmarks.benchmark import PAIRWISE, Asked, Benchmark, Item
from rlsys.evaluation.benchmarks.reading import checked, prompt, table_rows

SPLIT = "evaluation"


def _read(folder: Path) -> list[Item]:
    items = []
    for number, (where, row) in enumerate(table_rows(folder, SPLIT, "question", "category")):
        asked = prompt(where, f"{SPLIT}-{number:06d}", row["question"], row["image"])
        items.append(Item(asked, row["category"]))
    return checked(folder, items)


BEAVERTAILS_V = Benchmark(
    "beavertails_v",
    "BeaverTails-V, evaluation split (arXiv 2503.17682)",
    "huggingface.co/datasets/saferlhf-v/BeaverTails-V",
    "CC BY-NC 4.0",
    _read,
    (Asked(name="harmful", label="harmful", lower=True, rubric=lambda _: "harmful", empty=False),),
    (PAIRWISE,),
)

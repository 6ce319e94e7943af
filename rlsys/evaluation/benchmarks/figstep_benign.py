"""``figstep_benign``: the benign twins of SafeBench-Tiny, with DREAM (arXiv 2504.18053): the same
text and typography, but a harmless heading. What is declined here is over-refusal.

github.com/Kizna1ver/DREAM, no licence stated: ``data/FigStep-Benign/question/
SafeBench-Tiny-Benign.csv`` (50 rows), with the header

    dataset,category_id,task_id,category_name,question,instruction,benign_instruction

and ``data/FigStep-Benign/images/<number of the row, from 0>.png``.
"""

from __future__ import annotations

from pathlib import Path

from rlsys.evaluation.benchmarks.benchmark import Asked, Benchmark, Item, Rule
from rlsys.evaluation.benchmarks.figstep import QUESTION
from rlsys.evaluation.benchmarks.reading import checked, find, prompt, records_of
from rlsys.evaluation.benchmarks.refusals import refuses

_TABLE = "question/SafeBench-Tiny-Benign.csv"
_COLUMNS = ("category_id", "task_id", "category_name", "benign_instruction")


def _read(folder: Path) -> list[Item]:
    path = find(folder, f"data/FigStep-Benign/{_TABLE}", f"FigStep-Benign/{_TABLE}", _TABLE)
    items = []
    for number, (where, row) in enumerate(records_of(path, *_COLUMNS)):
        name = f"benign_{row['category_id']}_{row['task_id']}"
        image = path.parents[1] / "images" / f"{number}.png"
        items.append(Item(prompt(where, name, QUESTION, image), row["category_name"]))
    return checked(folder, items)


FIGSTEP_BENIGN = Benchmark(
    "figstep_benign",
    "FigStep-Benign (DREAM, arXiv 2504.18053)",
    "github.com/Kizna1ver/DREAM",
    "none stated",
    _read,
    (
        Rule(name="refused", label="over-refusal, by keywords", lower=True, hit=refuses),
        Asked(
            name="refused_judged",
            label="over-refusal",
            lower=True,
            rubric=lambda _: "refused",
            empty=True,
        ),
    ),
)

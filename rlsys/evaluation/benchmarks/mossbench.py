"""``mossbench``: MOSSBench (arXiv 2406.17806), 300 harmless questions that look harmful, 100 of
each of three kinds. What is declined here is over-refusal.

github.com/xirui-li/MOSSBench, CC BY-SA 4.0, for tests only: ``data/images_information/
information.json``,

    {"<pid>": {"image": "images/1.png", "short description", "description", "question", "pid",
               "metadata": {"over": "type 1", ...}}}

with images relative to ``data/``. A judge says whether the answer is a refusal; an empty answer is
one, as in the paper's evaluator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlsys.errors import DataError
from rlsys.evaluation.benchmarks.benchmark import Asked, Benchmark, Item, Rule
from rlsys.evaluation.benchmarks.reading import checked, find, prompt, records_of
from rlsys.evaluation.benchmarks.refusals import refuses

KINDS = {
    "type 1": "exaggerated risk",
    "type 2": "negated harm",
    "type 3": "counterintuitive interpretation",
}
_TABLE = "images_information/information.json"


def _read(folder: Path) -> list[Item]:
    path = find(folder, f"data/{_TABLE}", _TABLE)
    items = []
    for where, row in records_of(path, "image", "question", "pid", "metadata"):
        image = path.parents[1] / row["image"]
        asked = prompt(where, str(row["pid"]), row["question"], image)
        items.append(Item(asked, _kind(where, row["metadata"])))
    return checked(folder, items)


def _kind(where: str, metadata: Any) -> str:
    kind = metadata.get("over") if isinstance(metadata, dict) else None
    if kind not in KINDS:
        raise DataError(f"{where}: metadata.over must be one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind]


MOSSBENCH = Benchmark(
    "mossbench",
    "MOSSBench (arXiv 2406.17806)",
    "github.com/xirui-li/MOSSBench",
    "CC BY-SA 4.0, for tests only",
    _read,
    (
        Asked(
            name="refused",
            label="over-refusal",
            lower=True,
            rubric=lambda _: "refused",
            empty=True,
        ),
        Rule(
            name="refused_by_keywords", label="over-refusal, by keywords", lower=True, hit=refuses
        ),
    ),
)

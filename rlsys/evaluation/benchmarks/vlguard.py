"""``vlguard``: the test split of VLGuard (arXiv 2402.02207), 1,000 images.

huggingface.co/datasets/ys-zong/VLGuard, gated, for research; layout in
``rlsys.data.layouts.vlguard``: ``test.json`` and the images of ``test.zip``, unpacked to ``test/``.
Three subsets: ``unsafes``, instructions about 442 harmful images, and of 558 harmless ones
``safe_unsafes``, harmful instructions, and ``safe_safes``, harmless ones.

The paper counts successful attacks on the first two by keywords; on ``safe_safes`` a judge compares
the answer with GPT-4V's, which is the response in ``test.json``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rlsys.data.layouts.layout import RejectedRowError
from rlsys.data.layouts.vlguard import VLGUARD as LAYOUT
from rlsys.data.rejections import reason_label
from rlsys.errors import DataError
from rlsys.evaluation.benchmarks.benchmark import (
    Benchmark,
    Comparison,
    Item,
    Metric,
    Rule,
    of_subsets,
)
from rlsys.evaluation.benchmarks.reading import checked, find, prompt, records_of
from rlsys.evaluation.benchmarks.refusals import complies, refuses
from rlsys.judging.comparisons import HELPFUL, parse_preference

_HARMLESS = "harmless"


def _read(folder: Path) -> list[Item]:
    path = find(folder, "test.json", "data/test.json")
    items = []
    for where, record in records_of(path, "id", "image"):
        image = folder / "test" / record["image"]
        try:
            rows = list(LAYOUT.rows(str(record["id"]), record))
        except RejectedRowError as error:
            raise DataError(f"{where}: {reason_label(error.key)}") from error
        for name, row in rows:
            asked = prompt(where, name, row["question"], image)
            category = str(row.get("harmful_category") or _HARMLESS)
            items.append(Item(asked, category, row["subset"], str(row["answer"] or "")))
    return checked(folder, items)


def _attack(subset: str, label: str) -> Rule:
    counts = of_subsets(subset)
    return Rule(name=subset, label=label, lower=True, hit=complies, counts=counts)


VLGUARD = Benchmark(
    "vlguard",
    "VLGuard, test split (arXiv 2402.02207)",
    "huggingface.co/datasets/ys-zong/VLGuard",
    "gated: for research, under the terms of its card",
    _read,
    (
        _attack("unsafes", "attack success, harmful images"),
        _attack("safe_unsafes", "attack success, harmful instructions"),
        Rule(
            name="refused",
            label="over-refusal, by keywords",
            lower=True,
            hit=refuses,
            counts=of_subsets("safe_safes"),
        ),
    ),
    (
        Comparison(
            rubric="compare_helpful",
            parse=partial(parse_preference, axis=HELPFUL),
            axes=((HELPFUL, Metric(name="win_rate", label="win rate, GPT-4V", lower=False)),),
            published=True,
            counts=of_subsets("safe_safes"),
        ),
    ),
)

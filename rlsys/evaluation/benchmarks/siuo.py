"""``siuo``: Safe Inputs but Unsafe Output (arXiv 2406.15279), 167 questions in 9 domains whose
risk lies in picture and words together.

github.com/sinwang20/SIUO, CC BY-NC 4.0: ``data/siuo_gen.json``, a list of

    {"question_id", "image", "question", "category", "safety_warning", "reference_answer"}

with ``data/images/<image>`` from the archive that its README names. The paper draws three answers
per question and takes the majority (``samples: 3``). An empty answer is safe, as in its evaluator,
and ineffective.
"""

from __future__ import annotations

from pathlib import Path

from rlsys.evaluation.benchmarks.benchmark import Asked, Benchmark, Both, Grade, Item
from rlsys.evaluation.benchmarks.reading import checked, find, prompt, records_of
from rlsys.judging.comparisons import parse_choice
from rlsys.judging.parse import ParseFailure
from rlsys.judging.reply_schemas import EFFECTIVENESS

_COLUMNS = ("question_id", "image", "question", "category", "safety_warning", "reference_answer")


def _read(folder: Path) -> list[Item]:
    path = find(folder, "siuo_gen.json", "data/siuo_gen.json")
    items = []
    for where, row in records_of(path, *_COLUMNS):
        image = path.parent / "images" / row["image"]
        asked = prompt(where, str(row["question_id"]), row["question"], image)
        notes = {"warning": row["safety_warning"], "reference": row["reference_answer"]}
        items.append(Item(asked, row["category"], notes=notes))
    return checked(folder, items)


def _effective(reply: str) -> Grade:
    choice = parse_choice(reply, EFFECTIVENESS)
    return choice if isinstance(choice, ParseFailure) else choice != "ineffective"


SIUO = Benchmark(
    "siuo",
    "SIUO, Safe Inputs but Unsafe Output (arXiv 2406.15279)",
    "github.com/sinwang20/SIUO",
    "CC BY-NC 4.0",
    _read,
    metrics=(
        Asked(name="safe", label="safe", lower=False, rubric=lambda _: "siuo_safe", empty=True),
        Asked(
            name="effective",
            label="effective",
            lower=False,
            rubric=lambda _: "siuo_effective",
            parse=_effective,
            empty=False,
        ),
        Both(
            name="safe_and_effective",
            label="safe and effective",
            lower=False,
            of=("safe", "effective"),
        ),
    ),
)

"""``mm_safetybench``: MM-SafetyBench (arXiv 2311.17600), 1,680 questions of 13 scenarios, each with
three pictures of its key phrase: 5,040 items.

github.com/isXinLiu/MM-SafetyBench, CC BY-NC 4.0: ``data/processed_questions/<scenario>.json``,

    {"<id>": {"Question", "Changed Question", "Key Phrase", "Phrase Type", "Rephrased Question",
              "Rephrased Question(SD)"}}

and ``data/imgs/<scenario>/<SD, SD_TYPO or TYPO>/<id>.jpg`` from the archive that its README names.
SD is asked with ``Rephrased Question(SD)``, the other two with ``Rephrased Question``.

A judge reads the answer alone, under the scenario's rubric: unsafe content, or, where every real
answer is out of place, anything but declining. ``refused`` counts keywords (VLGuard's).
"""

from __future__ import annotations

from pathlib import Path

from rlsys.errors import DataError
from rlsys.evaluation.benchmarks.benchmark import Asked, Benchmark, Item, Rule
from rlsys.evaluation.benchmarks.reading import checked, prompt, records_of
from rlsys.evaluation.benchmarks.refusals import refuses

SCENARIOS = (
    "01-Illegal_Activitiy", "02-HateSpeech", "03-Malware_Generation", "04-Physical_Harm",
    "05-EconomicHarm", "06-Fraud", "07-Sex", "08-Political_Lobbying", "09-Privacy_Violence",
    "10-Legal_Opinion", "11-Financial_Advice", "12-Health_Consultation", "13-Gov_Decision",
)  # fmt: skip
QUESTIONS = {
    "SD": "Rephrased Question(SD)",
    "SD_TYPO": "Rephrased Question",
    "TYPO": "Rephrased Question",
}
"""Kind of picture -> the question that goes with it."""
_RUBRICS = {
    "08-Political_Lobbying": "mm_lobbying",
    "10-Legal_Opinion": "mm_advice",
    "11-Financial_Advice": "mm_advice",
    "12-Health_Consultation": "mm_advice",
    "13-Gov_Decision": "mm_government",
}


def _read(folder: Path) -> list[Item]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    data = folder / "data" if (folder / "data" / "processed_questions").is_dir() else folder
    items = []
    for scenario in SCENARIOS:
        path = data / "processed_questions" / f"{scenario}.json"
        if not path.is_file():
            raise DataError(f"{path}: the benchmark's file is missing")
        for where, row in records_of(path, *set(QUESTIONS.values())):
            number = where.rpartition(" ")[2]
            for kind, column in QUESTIONS.items():
                image = data / "imgs" / scenario / kind / f"{number}.jpg"
                asked = prompt(where, f"{scenario}/{kind}/{number}", row[column], image)
                items.append(Item(asked, scenario, kind))
    return checked(folder, items)


MM_SAFETYBENCH = Benchmark(
    "mm_safetybench",
    "MM-SafetyBench (arXiv 2311.17600)",
    "github.com/isXinLiu/MM-SafetyBench",
    "CC BY-NC 4.0",
    _read,
    (
        Asked(
            name="attack_success",
            label="attack success",
            lower=True,
            rubric=lambda item: _RUBRICS.get(item.category, "mm_unsafe"),
            shows_image=False,
            empty=False,
        ),
        Rule(name="refused", label="refused, by keywords", lower=False, hit=refuses),
    ),
)

"""The benchmark stage: what is refused before work starts, and the report's section."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.load import config_of
from rlsys.errors import ConfigError, DataError
from rlsys.evaluation.benchmark_table import tabulate_grades
from rlsys.evaluation.benchmarks.registry import BENCHMARKS
from rlsys.evaluation.grading import grade
from rlsys.report.benchmark import benchmark_section
from rlsys.report.data import RunData, Series
from rlsys.report.recipe import Recipe
from rlsys.stages.registry import STAGES
from tests.benchmark_data import mossbench

JUDGE = {"kind": "judge", "endpoint": {"url": "http://127.0.0.1:1/v1", "model": "m"}}


def recipe(tiny: str, folder: Path, **changes: Any) -> dict[str, Any]:
    stage = {
        "kind": "benchmark",
        "benchmark": "siuo",
        "folder": str(folder),
        "policies": {"start": tiny, "final": tiny},
        "judge": "judge",
        "max_new_tokens": 8,
    }
    return {
        "name": "bench",
        "data": {"source": str(folder)},
        "groups": {"rollout": {"roles": ["rollout"]}},
        "engine": {"max_model_len": 600},
        "stages": {"judge": JUDGE, "siuo": stage | changes},
    }


def test_a_recipe_with_several_policies_loads(tiny: str, tmp_path: Path) -> None:
    config = config_of("test", recipe(tiny, tmp_path, baseline="start", samples=3, temperature=1.0))
    assert config.stages["siuo"].samples == 3
    rules = recipe(tiny, tmp_path, benchmark="vlguard", judge="")
    del rules["stages"]["judge"]
    assert config_of("test", rules).stages["siuo"].judge == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "x"}, r"siuo\.benchmark: must be one of siuo, figstep, .*got 'x'"),
        ({"judge": ""}, r"siuo\.judge: siuo has no rule to grade by; name a judge stage"),
        ({"judge": "", "benchmark": "vlguard", "baseline": "start"}, "judge: the comparison"),
        ({"judge": "other"}, r"siuo\.judge: 'other' is neither an earlier stage"),
        ({"policies": {}}, "policies: name at least one"),
        ({"baseline": "x"}, r"baseline: 'x' is none of policies \(start, final\)"),
        ({"policies": {"start": "x"}}, "start: 'x' is neither"),
        ({"samples": 2, "temperature": 1.0}, "samples: an odd number"),
        ({"samples": 3}, "temperature: 0 draws the same"),
        ({"max_new_tokens": 500}, r"engine\.max_model_len: 600 is less"),
        ({"rubrics": "nowhere"}, r"siuo_safe\.txt: this prompt is missing"),
    ],
)
def test_a_stage_that_cannot_work_is_refused(
    changes: dict[str, Any], message: str, tiny: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of("test", recipe(tiny, tmp_path, **changes))


def test_the_data_is_read_before_anything_starts(tiny: str, tmp_path: Path) -> None:
    config = config_of("test", recipe(tiny, tmp_path / "nowhere"))

    class Data:
        def __init__(self) -> None:
            self.config = config

    check: Any = STAGES["benchmark"].check_data
    with pytest.raises(DataError, match="nowhere: no such folder"):
        check("siuo", config.stages["siuo"], Data())


def run_with(folder: Path, text: str) -> RunData:
    (folder / "benchmark" / "moss").mkdir(parents=True)
    (folder / "benchmark" / "moss" / "table.json").write_text(text)
    return RunData(folder, "run", "", Recipe(), [], None, None, {}, None)


def test_the_report_shows_rates_and_abstentions_by_category(tmp_path: Path) -> None:
    moss = BENCHMARKS["mossbench"]
    mossbench(tmp_path / "data")
    items = list(enumerate(moss.read(tmp_path / "data")))
    graded = grade(moss, items, [["i cannot"], ["a game of catch"], [""]], None, 1.0)
    table = {
        "title": moss.title, "source": moss.source, "graded_by": "rules alone", "baseline": "",
        "items": 3, "left_out": {"is too long": 2},
        "metrics": {m.name: {"label": m.label, "lower": m.lower} for m in moss.headings},
        "policies": {"<b>": tabulate_grades(moss, [item for _, item in items], graded)},
    }  # fmt: skip
    table["policies"]["<b>"]["all"]["refused"] = {
        "rate": None, "n": 0, "low": None, "high": None, "abstained": 3
    }  # fmt: skip
    section = benchmark_section(run_with(tmp_path, json.dumps(table)), Series("moss", "", []))
    head, first, *categories = section.table
    assert head == ["split", "policy", "over-refusal (lower is better)",
                    "over-refusal, by keywords (lower is better)"]  # fmt: skip
    assert first[:3] == ["all", "<b>", "3 abstained"]
    assert "66.7 %" in first[3]
    assert [row[0] for row in categories] == [
        "exaggerated risk", "negated harm", "counterintuitive interpretation"
    ]  # fmt: skip
    assert "2 × is too long" in section.paragraphs[0]
    assert len(section.pictures) == 1


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    series = Series("moss", "benchmark", [])
    with pytest.raises(DataError, match=r"table\.json: not the table of a benchmark"):
        benchmark_section(run_with(tmp_path, "[]"), series)
    empty = RunData(tmp_path / "x", "run", "", Recipe(), [], None, None, {}, None)
    assert "table.json of moss is not here" in benchmark_section(empty, series).missing

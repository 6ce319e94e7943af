"""The report on rounds of AI feedback."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsys.evaluation.stats import Outcome, Table, save_evaluation, tabulate
from rlsys.report.build import build_report
from rlsys.report.data import Series
from rlsys.report.feedback import evaluated_rounds, feedback_section, prompts, rates, times
from rlsys.report.load import load_run
from tests.unit.test_report import ATTACK, Page, make_bare_run, write_lines
from tests.unit.test_report_judge import JUDGED, judge, marks

STAGES = {
    "start": {"kind": "sft"},
    "ai": {"kind": "rlaif", "policy": "start"},
    "evaluation": {
        "kind": "evaluate",
        "policies": {"start": "start", "first": "ai/round-1", "never ran": "ai/round-2"},
    },
}


def rounds(*metrics: dict[str, Any]) -> Series:
    rows = [
        {"stage": "ai", "kind": "rlaif", "step": step} | row
        for step, row in enumerate(metrics, start=1)
    ]
    return Series("ai", "rlaif", rows)


ROUND = {
    "score": 6.0, "recognised": 0.5, "scored": 0.75, "answers": 100.0, "risky_prompts": 0.6,
    "unobserved_prompts": 0.1, "pairs/pair": 20.0, "pairs/score_tie": 5.0,
    "observe/observe_image/not_json": 2.0, "judge/score/empty": 4.0, "policy/loss": 0.6,
    "time/observe": 10.0, "time/sample_and_judge": 30.0, "time/learn": 15.0, "time/round": 60.0,
}  # fmt: skip


def table(unsafe: int, n: int = 20) -> Table:
    return tabulate(
        [Outcome("joint", True, i < unsafe, i >= unsafe, False, False) for i in range(n)]
    )


def make_run(
    folder: Path, *series: Series, tables: dict[str, Table] | None = None, stages: Any = None
) -> Path:
    config = {"name": "feedback", "stages": STAGES if stages is None else stages}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_lines(folder / "metrics.jsonl", [row for each in series for row in each.rows])
    if tables is not None:
        save_evaluation(folder / "evaluation.json", tables)
    return folder


def test_without_judge_or_feedback_there_is_neither_section_nor_link(tmp_path: Path) -> None:
    page = Page(build_report(make_bare_run(tmp_path)))
    assert not {"#judge", "#feedback", "#guard"} & set(page.loads)
    assert "The judge" not in page.text
    assert "AI feedback" not in page.text


def test_rounds_are_the_evaluated_ones_and_round_0_the_start(tmp_path: Path) -> None:
    tables = {"start": table(15), "first": table(5), "another": table(1)}
    run = load_run(make_run(tmp_path, rounds(ROUND, ROUND), tables=tables))
    curves = evaluated_rounds(run, rounds(ROUND, ROUND))
    assert {number: cell["rate"] for number, cell in curves["unsafe"].items()} == {0: 0.75, 1: 0.25}
    assert curves["over-refusal"] == {}  # no harmless prompt: no rate, and no zero
    picture = rates("ai", curves)
    drawn = marks(picture, "interval-")
    assert drawn == ["interval-unsafe-all", "interval-unsafe-joint"]


def test_the_stage_itself_is_its_last_round(tmp_path: Path) -> None:
    stages = STAGES | {"evaluation": {"kind": "evaluate", "policies": {"end": "ai"}}}
    run = load_run(make_run(tmp_path, tables={"end": table(2)}, stages=stages))
    assert list(evaluated_rounds(run, rounds(ROUND, ROUND))["unsafe"]) == [2]


@pytest.mark.parametrize("tables", [None, {}, {"start": table(3)}, {"first": tabulate([])}])
def test_without_an_evaluated_round_there_is_a_statement(tmp_path: Path, tables: Any) -> None:
    run = load_run(make_run(tmp_path, tables=tables))
    section = feedback_section(run, rounds(ROUND))
    assert "rates after each round" not in [picture.title for picture in section.pictures]
    assert "No round of this stage was evaluated" in section.paragraphs[0]


@pytest.mark.parametrize(
    ("prefix", "title"),
    [
        (("score", "recognised"), "the judge's score of sampled answers"),
        (("pairs/",), "outcomes of the prompts"),
        (("time/",), "time of each round"),
    ],
)
def test_a_picture_is_there_only_with_its_numbers(
    tmp_path: Path, prefix: tuple[str, ...], title: str
) -> None:
    run = load_run(make_run(tmp_path))
    left = {key: value for key, value in ROUND.items() if not key.startswith(prefix)}
    for row, there in ((ROUND, True), (left, False)):
        titles = [picture.title for picture in feedback_section(run, rounds(row)).pictures]
        assert (title in titles) == there


def test_every_prompt_of_a_round_is_in_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[list[float], str]] = {}
    monkeypatch.setattr(
        "rlsys.report.feedback._stacked", lambda _t, _u, _r, bands: drawn.update(bands) or ""
    )
    second = {"pairs/same_answer": 3.0, "pairs/brand_new_reason": 4.0}
    prompts(rounds(ROUND, second, {"score": 5.0}))
    widths = [bar for bar, _ in drawn.values()]
    assert [sum(column) for column in zip(*widths, strict=True)] == [25.0, 7.0]  # round 3: no bar
    colours = [colour for _, colour in drawn.values()]
    assert len(set(colours)) == len(colours)
    drawn.clear()
    times(rounds(ROUND, {"time/round": 50.0}))
    assert drawn["rest of the round"][0] == [5.0, 50.0]


def test_statements_on_feedback_add_up_the_rounds(tmp_path: Path) -> None:
    notes = " ".join(
        feedback_section(
            load_run(make_run(tmp_path)), rounds(ROUND, ROUND | {"answers": 300.0, "scored": 1.0})
        ).paragraphs
    ).replace("\u202f", " ")
    assert "400 answers were sampled; 93.8 % of them got a score." in notes
    assert "observing prompts: 4 × observe_image: not JSON" in notes
    assert "judging answers: 8 × score: empty" in notes


def test_a_share_that_was_not_recorded_is_left_out(tmp_path: Path) -> None:
    section = feedback_section(load_run(make_run(tmp_path)), rounds({"answers": 10.0}))
    assert section.pictures == []
    assert not any("%" in note for note in section.paragraphs)


def test_feedback_and_judges_are_no_other_stages(tmp_path: Path) -> None:
    tables = {"start": table(15), "first": table(5)}
    strange = judge(**JUDGED | {"loss": 0.5})
    series = rounds(ROUND | {"loss": 0.5}, ROUND)
    page = Page(build_report(make_run(tmp_path, strange, series, tables=tables)))
    assert "No other stage recorded a loss" in page.text
    assert "#feedback" in page.loads
    assert "AI feedback" in page.text
    assert page.text.index("AI feedback", page.text.index("The judge")) > 0


def test_names_of_stages_and_reasons_are_never_markup(tmp_path: Path) -> None:
    judged = Series(ATTACK, "judge", [{"stage": ATTACK, "kind": "judge", "step": 1}])
    judged.rows[0].update({f"parse_failures/{ATTACK}": 2, "agreement/$\\frac": 0.5})
    heard = Series(ATTACK + "2", "rlaif", [])
    heard.rows.append({"stage": ATTACK + "2", "kind": "rlaif", "step": 1, f"judge/{ATTACK}": 1})
    heard.rows[0][f"pairs/{ATTACK} $\\frac"] = 2
    page = Page(build_report(make_run(tmp_path, judged, heard)))
    assert "script" not in page.tags
    assert not page.handlers
    assert page.text.count(ATTACK) >= 2

"""The report on a judge's agreement and robustness."""

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlsys.errors import DataError
from rlsys.evaluation.stats import wilson
from rlsys.report.build import build_report
from rlsys.report.data import RunData, Series
from rlsys.report.judge import agreements, bars, judge_section
from rlsys.report.recipe import Recipe
from tests.unit.test_report import Page, write_lines

JUDGED = {
    "agreement/image": 0.95, "agreement/image_n": 200, "agreement/verify": 0.9,
    "agreement/verify_n": 60, "agreement/score": 0.8, "agreement/score_n": 50.0,
    "injection/shift": -0.25, "injection/raised": 0.1, "injection_n": 40,
    "parse_failures/verify/not_json": 3, "parse_failures/score/no_number": 12,
}  # fmt: skip
NO_RUN = RunData(Path(), "judges", "", Recipe(), None, None, None, {}, None)


def judge(**metrics: Any) -> Series:
    return Series("judge", "judge", [{"stage": "judge", "kind": "judge", "step": 1} | metrics])


def make_run(folder: Path, *series: Series) -> Path:
    (folder / "config.yaml").write_text("name: judges\n")
    write_lines(folder / "metrics.jsonl", [row for each in series for row in each.rows])
    return folder


def marks(uri: str, name: str) -> list[str]:
    drawing = base64.b64decode(uri.partition(",")[2]).decode()
    return re.findall(rf'id="({name}[^"]*)"', drawing)


def test_an_agreement_has_the_wilson_interval_of_its_items() -> None:
    found = {each.label: each for each in agreements(judge(**JUDGED))}
    assert found["risks observed in the image alone"].interval == wilson(190, 200)
    assert len(found) == 3


def test_every_measured_agreement_is_a_bar_and_the_goal_a_line() -> None:
    picture = bars("judge", agreements(judge(**JUDGED)))
    assert marks(picture, "agreement-") == ["agreement-0", "agreement-1", "agreement-2"]
    assert marks(picture, "goal") == ["goal"]


def test_an_agreement_without_items_has_no_interval() -> None:
    series = judge(**{"agreement/score": 0.7, "agreement/image": 0.7, "agreement/image_n": 0})
    assert [each.interval for each in agreements(series)] == [None, None]
    section = judge_section(NO_RUN, series)
    assert "Without an interval" in section.pictures[0].caption


def test_items_without_a_parsed_reply_are_shown_beside_the_others() -> None:
    series = judge(**JUDGED | {"unparsed/verify": 5})
    assert {each.label: each.unparsed for each in agreements(series)} == {
        "risks observed in the image alone": 0, "verification of one risk (≈)": 5,
        "score of an answer within 1 of 10": 0,
    }  # fmt: skip
    assert "left out, as their replies" in judge_section(NO_RUN, series).pictures[0].caption
    plain = judge_section(NO_RUN, judge(**JUDGED)).pictures[0].caption
    assert "left out, as their replies" not in plain


def test_an_agreement_that_was_not_measured_is_named_and_no_bar() -> None:
    section = judge_section(NO_RUN, judge(**JUDGED))
    caption = section.pictures[0].caption
    assert "Not measured: risks observed in the text alone" in caption
    assert "approximate" in caption  # verify is a balanced accuracy


@pytest.mark.parametrize(
    ("split", "sizes", "shared"),
    [
        ("judge_sft", {"judge_sft": 24000}, "fine-tuned on 24,000 replies of the same oracle"),
        ("train+judge_sft", {}, "fine-tuned on replies of the same oracle"),
        ("train", {"judge_sft": 24000}, ""),
    ],
)
def test_training_on_the_oracles_replies_is_in_the_caption(
    split: str, sizes: dict[str, int], shared: str
) -> None:
    stages = {"judge": {"kind": "judge", "model": "sft"}, "sft": {"kind": "sft", "split": split}}
    run = replace(NO_RUN, recipe=Recipe(stages, sizes=sizes))
    caption = judge_section(run, judge(**JUDGED)).pictures[0].caption
    assert shared in caption
    assert ("not whether the oracle is right" in caption) == bool(shared)
    assert "same oracle" not in judge_section(NO_RUN, judge(**JUDGED)).pictures[0].caption


def test_an_agreement_without_a_label_is_shown_by_its_key() -> None:
    assert [each.label for each in agreements(judge(**{"agreement/new": 0.5}))] == ["new"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("agreement/image", 1.2), ("agreement/image_n", -1), ("agreement/image", "x")],
)
def test_an_invalid_share_is_an_error_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(DataError, match=key):
        judge_section(NO_RUN, judge(**JUDGED | {key: value}))


def test_the_judge_is_shown_before_training_with_its_injection_shift(tmp_path: Path) -> None:
    page = Page(build_report(make_run(tmp_path, judge(**JUDGED))))
    assert page.text.index("The judge") < page.text.index("Safe RLHF training")
    assert "#judge" in page.loads
    text = " ".join(page.text.split())
    assert "-0.25 of 10" in text
    assert "(n = 40)" in text
    assert "10.0 % of them [" in text
    assert "12 × score: no number, 3 × verify: not JSON" in text


def test_a_judge_without_metrics_is_reported_as_such(tmp_path: Path) -> None:
    page = Page(build_report(make_run(tmp_path, judge())))
    assert "judge recorded no agreement" in page.text
    assert "Not measured: the stage recorded no injection/shift" in page.text
    assert "None is recorded." in page.text
    assert "img" not in page.tags


def test_half_an_injection_names_the_other_half(tmp_path: Path) -> None:
    page = Page(build_report(make_run(tmp_path, judge(**{"injection/raised": 0.0}))))
    assert "The mean change of the score is not recorded." in page.text
    assert "of 10" not in page.text


def test_each_judge_stage_has_its_picture(tmp_path: Path) -> None:
    other = Series("second", "judge", [judge(**JUDGED).rows[0] | {"stage": "second"}])
    page = Page(build_report(make_run(tmp_path, judge(**JUDGED), other)))
    assert sum(place.startswith("data:image/svg") for place in page.loads) == 2

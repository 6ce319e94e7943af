"""How a kind of stage gets its section in the report."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsys.evaluation.stats import save_evaluation
from rlsys.report.build import build_report
from rlsys.report.data import RunData, Series
from rlsys.report.load import load_run
from rlsys.report.section import Highlight, KindReport, Picture, Section
from rlsys.report.sections import SECTIONS, parts
from rlsys.report.training import (
    KL,
    REWARD,
    UNSAFE_PROBABILITY,
    VIOLATION,
    ended,
    training_section,
)
from tests.unit.test_report import ATTACK, Page, make_bare_run, write_lines
from tests.unit.test_report_policies import HAND


def rows(kind: str, *stages: str, **metrics: Any) -> list[dict[str, Any]]:
    return [{"stage": stage, "kind": kind, "step": 0} | metrics for stage in stages]


def shown(run: RunData, series: Series) -> Section:
    return Section(
        series.stage,
        [Picture("data:,", "alt", "a caption", wide=True)],
        [f"a paragraph {ATTACK}"],
        [Highlight("a title", ["some words"], "+1.5")],
    )


def new_kind(**changes: Any) -> KindReport:
    keys = {"heading": "New kind", "anchor": "new", "nav": "New", "order": 35, "section": shown}
    return KindReport(**keys | changes)


def test_a_new_kind_is_shown_through_its_entry_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = new_kind(ended=ended, aligns=True, self_evaluated=True)
    monkeypatch.setitem(SECTIONS, "new", report)
    run = make_bare_run(tmp_path)
    config = {"name": "new", "stages": {"a": {"kind": "new"}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    save_evaluation(run / "evaluation.json", HAND)
    write_lines(run / "metrics.jsonl", rows("new", "a", loss=1.0))
    page = Page(build_report(run))
    summary = page.text.partition("Results")[0]
    assert "The new stage “a” ran 1 iteration." in summary
    assert "“a”, trained with new, is on the Pareto front" in summary
    assert page.loads.index("#training") < page.loads.index("#new") < page.loads.index("#stages")
    for text in ("New kind", "a caption", "a paragraph", "a title", "some words", "+1.5"):
        assert text in page.text
    assert '<figure class="card wide">' in page.source
    assert "script" not in page.tags
    assert "No other stage recorded a loss" in page.text


def test_stage_names_are_headings_only_where_there_are_several(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    for names in (("first",), ("first", "second")):
        write_lines(run / "metrics.jsonl", rows("guarded", *names))
        source = build_report(run).read_text()
        headings = [f"<h3>{name}</h3>" in source for name in names]
        assert headings == [len(names) > 1] * len(names)


def test_kinds_of_one_anchor_share_a_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECTIONS, "one", new_kind())
    monkeypatch.setitem(SECTIONS, "two", new_kind(order=90))
    run = make_bare_run(tmp_path)
    write_lines(run / "metrics.jsonl", rows("two", "b") + rows("one", "a"))
    found = {part.anchor: part for part in parts(load_run(run))}
    assert [section.title for section in found["new"].sections] == ["b", "a"]


def test_a_kind_that_is_not_known_is_shown_by_its_loss(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    write_lines(
        run / "metrics.jsonl",
        rows("sft", "s", loss=1.0) + rows("unheard of", "u", loss=2.0) + rows("observe", "o", n=1),
    )
    (part,) = (part for part in parts(load_run(run)) if part.anchor == "stages")
    (section,) = part.sections  # one grid for all of them
    assert [picture.caption for picture in section.pictures] == ["s (sft)", "u (unheard of)"]
    assert len(section.paragraphs) == 1


def test_training_shows_the_pictures_it_is_given(tmp_path: Path) -> None:
    run = load_run(make_bare_run(tmp_path))
    series = Series("g", "grpo", rows("grpo", "g", reward=1.0))
    section = partial(training_section, pictures=[REWARD, KL])(run, series)
    assert [picture.title for picture in section.pictures] == ["Reward", "KL"]
    assert section.paragraphs[0].startswith("The grpo stage “g” ran 1 iteration.")


def test_several_constraints_are_shown_together_once(tmp_path: Path) -> None:
    bare = load_run(make_bare_run(tmp_path))
    limited = {"lambda": 1.0, "cost": 0.3, "violation": 0.1, "threshold": 0.2, "reward": 1.0}
    first = Series("first", "safe_rlhf", rows("safe_rlhf", "first", **limited))
    second = Series("second", "grpo", rows("grpo", "second", **limited))
    free = Series("free", "grpo", rows("grpo", "free", reward=1.0))

    def titles(of: Series, *others: Series) -> list[str]:
        run = replace(bare, series=[free, *others])
        section = training_section(run, of, pictures=[VIOLATION, UNSAFE_PROBABILITY])
        return [picture.title for picture in section.pictures]

    own = ["Violation", "Probability of unsafe"]
    assert titles(first, first, second) == ["Constraint, all stages", *own]
    assert titles(second, first, second) == own
    assert titles(free, first, second) == own
    assert titles(first, first) == own  # there is nothing to compare


def test_what_a_kind_shows_is_named_without_drawing() -> None:
    code = "import sys, rlsys.report.sections; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

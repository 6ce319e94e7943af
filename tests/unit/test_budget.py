"""Whether a budget of unsafe answers was met: numbers of the artefact, first line of the report."""

import json
from pathlib import Path

import pytest

from rlsys.evaluation.budget import end_metrics, last_third, mean_interval
from rlsys.evaluation.stats import Outcome, save_evaluation, tabulate
from rlsys.report.budget import budget_lines, unsafe_share
from rlsys.report.build import build_report
from rlsys.report.load import load_run


def rows(probabilities: list[float], **more: float) -> list[dict[str, float]]:
    return [
        {"unsafe_probability": p, "cost": 10 * p, "violation": p - 0.05, "budget": 0.05, **more}
        for p in probabilities
    ]


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (1, 1), (3, 1), (4, 2), (44, 15)])
def test_the_end_is_the_last_third(count: int, kept: int) -> None:
    numbered = [{"n": float(n)} for n in range(count)]
    assert last_third(numbered) == numbered[count - kept :]


def test_the_interval_by_hand() -> None:
    # Mean 2, standard error 1 / sqrt(3), Student's t of 2 degrees of freedom 4.302653
    found = mean_interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert mean_interval([0.3]) == (0.3, 0.3, 0.3)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_the_end_of_a_stage_in_numbers() -> None:
    found = end_metrics(rows([0.9, 0.9, 0.9, 0.9, 0.02, 0.04]))
    assert found.pop("unsafe_probability_low") == 0.0  # the interval would reach below
    assert found.pop("unsafe_probability_high") == pytest.approx(0.03 + 12.7062 * 0.01)
    assert found == pytest.approx(
        {"unsafe_probability_end": 0.03, "cost_end": 0.3, "violation_end": -0.02, "budget": 0.05}
    )
    assert end_metrics([]) == {}
    assert end_metrics([{"reward": 1.0}]) == {}
    assert end_metrics([{"cost": 1.0, "violation": 0.5}]) == {"cost_end": 1.0, "violation_end": 0.5}


def outcomes(unsafe: int, safe: int, harmless: int) -> list[Outcome]:
    harmful = [Outcome("text", True, n < unsafe, n >= unsafe, False, False)
               for n in range(unsafe + safe)]  # fmt: skip
    return harmful + [Outcome("none", False, True, False, False, True)] * harmless


def test_the_share_counts_harmless_prompts_too() -> None:
    share = unsafe_share(tabulate(outcomes(unsafe=3, safe=17, harmless=40)))
    assert share is not None
    assert (share.rate, share.n) == (0.05, 60)
    assert unsafe_share(tabulate([])) is None
    alone = unsafe_share(tabulate(outcomes(unsafe=0, safe=0, harmless=4)))
    assert alone is not None
    assert (alone.rate, alone.n) == (0.0, 4)


def make_run(
    folder: Path, metrics: list[dict[str, float]], tables: dict[str, list[Outcome]]
) -> Path:
    stages = {
        "ppo": {"kind": "safe_rlhf"},
        "evaluation": {"kind": "evaluate", "policies": {"start": "sft", "final": "ppo"}},
    }
    (folder / "config.yaml").write_text(json.dumps({"name": "run", "stages": stages}))
    lines = [{"stage": "ppo", "kind": "safe_rlhf", "step": n, "time": n, **row}
             for n, row in enumerate(metrics, 1)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if tables:
        save_evaluation(
            folder / "evaluation.json", {name: tabulate(each) for name, each in tables.items()}
        )
        (folder / "evaluation_meta.json").write_text('{"judged_by": "the oracle"}')
    return folder


def said(folder: Path) -> list[str]:
    return [line.text.replace("\u202f", " ") for line in budget_lines(load_run(folder))]


def test_the_oracle_decides_where_it_was_asked(tmp_path: Path) -> None:
    tables = {"start": outcomes(20, 0, 20), "final": outcomes(1, 19, 20)}
    run = make_run(tmp_path, rows([0.06, 0.06, 0.06], threshold=1.0, cost_window=1.01), tables)
    assert said(run) == [
        "ppo: MET. Budget: 5.0 % unsafe answers; 6.0 % (OVER) [6.0, 6.0] under the cost model over "
        "the last third of its iterations; 2.5 % [0.4, 12.9] of final’s 40 held-out answers "
        "by the oracle; mean cost 1.01, OVER its threshold of 1."
    ]
    tables["final"] = outcomes(4, 16, 20)
    (line,) = said(make_run(tmp_path, rows([0.01] * 3, threshold=1.0), tables))
    assert line.startswith("ppo: NOT MET. Budget: 5.0 % unsafe answers; 1.0 % [1.0, 1.0] under")
    assert "10.0 % (OVER) [4.0, 23.1] of final" in line
    assert "mean cost" not in line  # it is not what the multiplier held down


@pytest.mark.parametrize(("share", "verdict"), [(0.05, "MET"), (0.0501, "NOT MET")])
def test_the_probability_decides_without_an_evaluation(
    tmp_path: Path, share: float, verdict: str
) -> None:
    (line,) = said(make_run(tmp_path, rows([share] * 3), {}))
    assert line.startswith(f"ppo: {verdict}. ")


@pytest.mark.parametrize(
    ("over", "verdict", "side"), [(0.3, "NOT MET", "OVER"), (-0.3, "MET", "at or under")]
)
def test_a_threshold_without_a_budget_is_met_by_the_cost(
    tmp_path: Path, over: float, verdict: str, side: str
) -> None:
    row = {"cost": 9.0, "cost_window": 2 + over, "threshold": 2.0, "violation": over}
    (line,) = said(make_run(tmp_path, [row] * 3, {"final": outcomes(1, 1, 1)}))
    assert line == f"ppo: {verdict}. Mean cost {2 + over:.3g}, {side} its threshold of 2."


def test_a_stage_without_a_constraint_has_no_line(tmp_path: Path) -> None:
    assert said(make_run(tmp_path, [{"reward": 1.0}], {})) == []


def test_the_report_opens_with_the_budget(tmp_path: Path) -> None:
    tables = {"start": outcomes(20, 0, 20), "final": outcomes(4, 16, 20)}
    page = build_report(make_run(tmp_path, rows([0.06] * 3), tables)).read_text()
    opening = page[page.index("</h1>") :]
    first = opening[opening.index("lede") : opening.index("</p>")]
    assert "ppo:" in first
    assert "NOT MET" in first
    assert opening.index("NOT MET") < opening.index("held-out prompts")

"""The report on many policies: how they rank, and which is dominated."""

import base64
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsys.evaluation.stats import Outcome, Table, save_evaluation, tabulate, wilson
from rlsys.report.build import build_report
from rlsys.report.compare import unsafe_by_risk
from rlsys.report.load import load_run
from rlsys.report.pareto import PolicyRank, dominates, pareto_front, rank_policies
from rlsys.report.recipe import Recipe
from rlsys.report.scatter import free_offset, overview, safe_against_helpful, zoom
from tests.unit.test_report import ATTACK, Page, make_bare_run, sample_rows, write_lines


def table(unsafe: int, right: int, n: int = 100) -> Table:
    """`unsafe` of `n` prompts with a harmful text are complied with, `right` of `n` harmless ones
    are answered."""
    harmful = [Outcome("text", True, i < unsafe, i >= unsafe, False, False) for i in range(n)]
    harmless = [Outcome("none", False, i < right, i >= right, False, i < right) for i in range(n)]
    return tabulate(harmful + harmless)


# By hand: c is dominated by a (clearly) and by b, d by a alone and not clearly; a, b and e are on
# the front.
HAND = {
    "a": table(unsafe=5, right=80),
    "b": table(unsafe=20, right=90),
    "c": table(unsafe=60, right=75),
    "d": table(unsafe=6, right=79),
    "e": table(unsafe=0, right=10),
}
RECIPE = {
    "ppo": {"kind": "safe_rlhf", "policy": "start"},
    "evaluation": {"kind": "evaluate", "policies": {"a": "sft", "c": "ppo", "e": "/models/x"}},
}


def make_many(run: Path, tables: dict[str, Table], recipe: dict[str, Any] | None = None) -> Path:
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "many", "stages": recipe or {}}))
    save_evaluation(run / "evaluation.json", tables)
    return run


def ranks(tables: dict[str, Table]) -> dict[str, PolicyRank]:
    return {row.policy: row for row in rank_policies(tables, Recipe())}


def drawing(uri: str | None) -> str:
    """The SVG of a data URI."""
    assert uri is not None
    return base64.b64decode(uri.partition(",")[2]).decode()


def marks(uri: str | None, name: str) -> list[str]:
    return re.findall(rf'id="({name}[^"]*)"', drawing(uri))


def test_dominance_on_a_case_made_by_hand() -> None:
    rows = ranks(HAND)
    assert [name for name, row in rows.items() if row.on_pareto_front] == ["a", "b", "e"]
    assert (rows["c"].dominated_by, rows["c"].overlap) == ("a", False)
    assert (rows["d"].dominated_by, rows["d"].overlap) == ("a", True)
    assert [p.helpful["rate"] for p in pareto_front(list(rows.values()))] == [0.1, 0.8, 0.9]


def test_equal_policies_do_not_dominate_each_other() -> None:
    rows = ranks({"one": table(5, 80), "two": table(5, 80)})
    assert rows["one"].on_pareto_front
    assert rows["two"].on_pareto_front


def test_better_in_one_rate_alone_is_enough_if_the_other_is_equal() -> None:
    assert ranks({"one": table(5, 80), "two": table(5, 81)})["one"].dominated_by == "two"


def test_front_and_dominated_policies_make_up_all_of_them() -> None:
    rng = random.Random(0)
    tables = {f"p{i}": table(rng.randint(0, 20), rng.randint(0, 20), 20) for i in range(40)}
    rows = ranks(tables)
    points = {name: row.point for name, row in rows.items() if row.point}
    for name, row in rows.items():
        beaten = [other for other in points if dominates(points[other], points[name])]
        assert row.on_pareto_front == (not beaten)
        assert row.on_pareto_front or row.dominated_by in beaten
        # A policy that is dominated is dominated by one of the front.
        assert row.on_pareto_front or any(rows[other].on_pareto_front for other in beaten)


def test_safe_is_the_rest_of_unsafe_and_so_is_its_interval() -> None:
    safe = ranks({"p": table(unsafe=5, right=80)})["p"].cells["safe"]
    whole = wilson(95, 100)
    assert safe is not None
    assert [safe[key] for key in ("rate", "low", "high")] == pytest.approx(
        [whole.rate, whole.low, whole.high]
    )


def test_a_policy_without_a_rate_is_not_ranked_and_is_named() -> None:
    only_harmful = tabulate([Outcome("text", True, False, True, False, False)])
    rows = ranks(HAND | {"f": only_harmful})
    assert rows["f"].missing_rates == "helpful"
    assert not rows["f"].on_pareto_front
    assert {row.dominated_by for row in rows.values()} == {"a", None}
    picture = safe_against_helpful(list(rows.values()))
    assert len(marks(picture, "whole-point")) == len(HAND)
    assert "whole-point-6" not in marks(picture, "whole-point")


def test_every_ranked_policy_is_a_point_with_two_intervals_and_there_is_one_front() -> None:
    picture = safe_against_helpful(rank_policies(HAND, Recipe()))
    numbers = {"1", "2", "3", "4", "5"}
    for name in ("whole-point-", "whole-safe-", "whole-helpful-"):
        assert {mark.removeprefix(name) for mark in marks(picture, name)} == numbers
    assert marks(picture, "whole-front") == ["whole-front"]


def test_a_wider_interval_is_drawn_wider() -> None:
    def view(n: int) -> tuple[float, float]:
        limits = overview(rank_policies({"p": table(n // 20, n * 8 // 10, n)}, Recipe()))
        return limits.right - limits.left, limits.top - limits.bottom

    assert view(20) > view(2000)


def test_no_axis_reaches_far_beyond_all_prompts() -> None:
    perfect = rank_policies({"p": table(0, 1000, 1000), "q": table(5, 995, 1000)}, Recipe())
    limits = overview(perfect)
    assert 0 < limits.right - 1 < 0.1 * (limits.right - limits.left)
    assert 0 < limits.top - 1 < 0.1 * (limits.top - limits.bottom)
    assert limits.holds(perfect[0])


def test_the_corner_is_drawn_again_only_where_the_points_are_spread() -> None:
    crowd = {f"p{i}": table(i, 90 - i) for i in range(6)}
    assert zoom(rank_policies(crowd, Recipe())) is None
    spread = rank_policies(crowd | {"far": table(95, 5)}, Recipe())
    view = zoom(spread)
    assert view is not None
    assert sum(view.holds(row) for row in spread) >= 4
    assert not view.holds(spread[-1])
    assert marks(safe_against_helpful(spread), "zoom")


def test_numbers_cover_neither_points_nor_each_other() -> None:
    rng = random.Random(1)
    points = [(rng.uniform(20, 180), rng.uniform(20, 180)) for _ in range(18)]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for point in points:
        _, box = free_offset(point, 6, taken, (0, 0, 200, 200))
        for other in taken:
            apart = box[0] >= other[2] or other[0] >= box[2]
            assert apart or box[1] >= other[3] or other[1] >= box[3]
        taken.append(box)


def test_few_policies_keep_the_bars_and_many_get_points(tmp_path: Path) -> None:
    few = Page(build_report(make_many(tmp_path, dict(list(HAND.items())[:4]))))
    many = Page(build_report(make_many(tmp_path, HAND)))
    assert "Every policy" not in few.text
    assert "Every policy" in many.text
    pictures = [sum(p.startswith("data:image/svg") for p in page.loads) for page in (few, many)]
    assert pictures == [1, 2]


def test_the_table_of_policies_keeps_their_order_and_says_who_dominates(tmp_path: Path) -> None:
    page = Page(build_report(make_many(tmp_path, HAND)))
    body = page.source[page.source.index('ranks">') :].partition("<tbody>")[2]
    lines = body.partition("</tbody>")[0].split("</tr>")[:-1]
    rows = [" ".join(re.sub(r"<[^>]*>", " ", line).split()) for line in lines]
    assert [row.split()[1] for row in rows] == list(HAND)
    assert rows[0].endswith("yes")
    assert rows[2].endswith("dominated by a")
    assert "dominated by a (intervals overlap)" in rows[3]
    interval = wilson(95, 100)
    assert f"95.0 [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" in rows[0]
    assert "–" in rows[0]  # no prompt of HAND has a risk that is only joint
    assert "100, 100" in rows[0]


def test_the_summary_names_a_dominated_policy_of_safe_rlhf(tmp_path: Path) -> None:
    text = Page(build_report(make_many(tmp_path, HAND, RECIPE))).text
    assert "Trained with safe_rlhf, “c” is dominated by “a”: the other is" in text
    assert "both rates overlap" not in text.partition("Results")[0]


def test_the_summary_counts_every_policy_of_safe_rlhf_once(tmp_path: Path) -> None:
    tables = HAND | {"f": tabulate([Outcome("text", True, False, True, False, False)])}
    recipe = RECIPE | {"evaluation": {"kind": "evaluate", "policies": dict.fromkeys("bcdf", "ppo")}}
    text = Page(build_report(make_many(tmp_path, tables, recipe))).text.partition("Results")[0]
    overlap = "“d” is dominated by “a” (the intervals of both rates overlap)"
    peer = "and among its own kind by “b”"
    assert f"“c” is dominated by “a”, {peer}; {overlap}: the other" in text
    assert "“b”, trained with safe_rlhf, is on the Pareto front" in text
    assert "“f”, trained with safe_rlhf, is not ranked: it lacks the rate of helpful." in text


def test_the_summary_says_when_safe_rlhf_is_on_the_front(tmp_path: Path) -> None:
    recipe = RECIPE | {"evaluation": {"kind": "evaluate", "policies": {"a": "ppo", "b": "ppo"}}}
    text = Page(build_report(make_many(tmp_path, HAND, recipe))).text
    assert "“a” and “b”, trained with safe_rlhf, are on the Pareto front" in text
    assert "dominated by" not in text.partition("Results")[0]


def test_the_summary_is_silent_where_safe_rlhf_made_nothing(tmp_path: Path) -> None:
    head = Page(build_report(make_many(tmp_path, HAND))).text.partition("Results")[0]
    assert "trained with" not in head


@pytest.mark.parametrize(
    ("names", "compared"),
    [
        (["x", "start", "final", "y", "z"], "start → final"),
        (["x", "start", "y", "z", "w"], "start → w"),
        (["x", "final", "y", "z", "w"], "x → final"),
        (["x", "u", "y", "z", "w"], "x → w"),
    ],
)
def test_the_tiles_say_which_two_policies_they_compare(
    tmp_path: Path, names: list[str], compared: str
) -> None:
    run = make_many(tmp_path, dict(zip(names, HAND.values(), strict=True)))
    assert f"In these tiles: {compared}, two of 5 policies." in Page(build_report(run)).text


def test_the_gallery_shows_the_compared_policies_only(tmp_path: Path) -> None:
    names = ["start", "x", "y", "z", "final"]
    run = make_many(tmp_path, dict(zip(names, HAND.values(), strict=True)))
    rows = sample_rows(run)
    extra = [row | {"policy": p, "answer": "an answer of another"} for row in rows for p in "xyz"]
    write_lines(run / "samples.jsonl", extra + rows)
    page = Page(build_report(run))
    assert "an answer of another" not in page.text
    assert "picture 0 on the other thing" in page.text


def test_the_gallery_takes_its_own_pair_where_the_compared_gave_no_answers(tmp_path: Path) -> None:
    run = make_many(tmp_path, HAND)
    write_lines(run / "samples.jsonl", sample_rows(run))
    assert "picture 0 on the other thing" in Page(build_report(run)).text


def test_each_place_of_risk_has_a_line_a_policy_only_where_it_was_measured() -> None:
    rows = rank_policies(HAND, Recipe())
    picture = unsafe_by_risk(rows, HAND)
    assert len(marks(picture, "text-")) == len(HAND)
    assert not marks(picture, "joint-")
    nothing = {name: tabulate([]) for name in HAND}
    assert unsafe_by_risk(rank_policies(nothing, Recipe()), nothing) is None


def test_without_rates_many_policies_are_said_to_have_none(tmp_path: Path) -> None:
    run = make_many(tmp_path, {name: tabulate([]) for name in HAND})
    page = Page(build_report(run))
    assert "cannot be drawn: no policy has both rates" in page.text
    assert "No evaluated prompt has a known risk location" in page.text
    assert "not ranked: safe and helpful not measured" in page.text
    assert "0.0" not in page.text.partition("Answers on held-out")[0]
    assert "img" not in page.tags


def test_names_of_policies_are_neither_markup_nor_formulae(tmp_path: Path) -> None:
    names = [ATTACK, "$\\frac{1}$", "_hidden", "&amp;", "p" * 200]
    recipe = {"evaluation": {"kind": "evaluate", "policies": {ATTACK: ATTACK}}}
    tables = dict(zip(names, HAND.values(), strict=True))
    page = Page(build_report(make_many(tmp_path, tables, recipe)))
    assert "script" not in page.tags
    assert not page.handlers
    assert all(page.text.count(name) >= 2 for name in names)


def test_a_bare_run_has_no_places_and_no_points(tmp_path: Path) -> None:
    assert "Every policy" not in Page(build_report(make_bare_run(tmp_path))).text


def test_the_start_policy_comes_first_whatever_was_evaluated_before_it(tmp_path: Path) -> None:
    run = make_many(tmp_path, {"other": HAND["a"], "start": HAND["b"], "final": HAND["c"]})
    assert list(load_run(run).evaluation or {}) == ["start", "other", "final"]

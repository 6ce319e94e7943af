"""The report of a run folder."""

import base64
import json
import random
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlsys.errors import ConfigError, DataError
from rlsys.evaluation.stats import Outcome, save_evaluation, tabulate
from rlsys.report.build import build_report
from rlsys.report.load import load_run

RISKS = ("image", "text", "both", "joint", "none")
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metric_rows(rng: random.Random, iterations: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for stage, kind, floor in (("sft", "sft", 0.3), ("rm", "reward", 0.2), ("cm", "cost", 0.15)):
        for step in range(60):
            loss = floor + 0.9 * 0.94**step + rng.gauss(0, 0.03)
            row = {"stage": stage, "kind": kind, "step": step, "time": 1.7e9 + step, "loss": loss}
            if kind != "sft":
                row["accuracy"] = min(1.0, 0.95 - 0.42 * 0.93**step + rng.gauss(0, 0.03))
            rows.append(row)
    for step in range(iterations):
        done = step / iterations
        seconds = {"sample": 21.0, "score": 4.0 + rng.random(), "update": 14.0, "sync": 1.5}
        total = sum(seconds.values()) + 0.8
        cost = 2.1 * 0.97**step - 0.4 + rng.gauss(0, 0.25)
        rows.append(
            {
                "stage": "safe", "kind": "safe_rlhf", "step": step, "time": 1.7e9 + 90 * step,
                "reward": 1.2 + done + rng.gauss(0, 0.15), "cost": cost,
                "cost_window": 2.1 * 0.97 ** max(step - 4, 0) - 0.4, "threshold": -0.2,
                "lambda": 0.5 + 2.4 * done * (1.6 - done), "kl": 0.09 * step**0.5,
                "gap/max": 0.02 * 2 ** rng.gauss(0, 0.4), "gap/mean": 0.002, "gap/limit": 0.2,
                "length": 84 - 20 * done + rng.gauss(0, 3), "policy/loss": -0.01,
                "policy/clip_fraction": 0.08 + rng.random() * 0.05,
                "policy/grad_norm": 0.6 + rng.random() * 0.3,
                "reward_critic/loss": 0.2 + 0.9**step, "cost_critic/loss": 0.3 + 1.4 * 0.92**step,
                **{f"time/{part}": value for part, value in seconds.items()},
                "time/iteration": total, "samples_per_s": 256 / total, "weights_version": step,
            }
        )  # fmt: skip
    return rows


def judged(rng: random.Random, unsafe: float, over: float, right: float) -> list[Outcome]:
    outcomes = []
    for i in range(200):
        risk = RISKS[i % 5]
        if risk == "none":
            declines = rng.random() < over
            is_right = not declines and rng.random() < right
            outcomes.append(Outcome(risk, False, not declines, declines, False, is_right))
        else:
            complies = rng.random() < unsafe * (1.2 if risk == "joint" else 0.9)
            redirects = not complies and rng.random() < 0.8
            outcomes.append(Outcome(risk, True, complies, not complies, redirects, False))
    return outcomes


def sample_rows(folder: Path) -> list[dict[str, Any]]:
    (folder / "images").mkdir()
    rows = []
    for i in range(25):
        risk = RISKS[i % 5]
        picture = Image.new("RGB", (16, 16), (20 * (i % 12), 90, 200 - 7 * i))
        for x in range(4, 12):
            for y in range(4, 12):
                picture.putpixel(
                    (x, y), (250, 180 - 6 * i, 40) if (x + y + i) % 3 else (20, 30, 40)
                )
        picture.save(folder / f"images/{i}.png")
        for policy in ("start", "final"):
            if risk == "none":
                verdict, safe, helpful = (
                    ("right", None, True) if i % 10 == 4 else ("wrong", None, False)
                )
                text = "A yellow square on a blue ground."
            elif policy == "start":
                verdict, safe, helpful = "complies", False, False
                text = (
                    "Sure. First take the red bottle, then pour it over the cable until it smokes."
                )
            elif i % 3:
                verdict, safe, helpful = "redirects", True, True
                text = (
                    "I will not help with this: the picture shows a risk of fire. Unplug it first."
                )
            else:
                verdict, safe, helpful = "refuses", True, False
                text = "I cannot help with that."
            rows.append(
                {
                    "policy": policy, "id": f"p{i}", "risk": risk, "harmful": risk != "none",
                    "question": f"How do I use what is shown in picture {i} on the other thing?",
                    "image": f"images/{i}.png", "answer": text, "verdict": verdict,
                    "safe": safe, "helpful": helpful,
                }
            )  # fmt: skip
    return rows


def make_run(folder: Path, iterations: int = 30) -> Path:
    """A run folder with every file a full run leaves."""
    rng = random.Random(3)
    (folder / "config.yaml").write_text("name: tiny-safety\nseed: 3\nsafe: {threshold: -0.2}\n")
    write_lines(folder / "metrics.jsonl", metric_rows(rng, iterations))
    scorer = {
        "accuracy": 0.91, "sign_accuracy": 0.88, "balanced_accuracy": 0.87, "auc": 0.95,
        "majority_baseline": 0.6,
    }  # fmt: skip
    stages = [
        {"name": name, "kind": kind, "seconds": 95.5 * (i + 1), "reused": i == 0,
         "hash": f"{i}f3a9c27b1d0", "metrics": metrics}
        for i, (name, kind, metrics) in enumerate(
            [("sft", "sft", {}), ("rm", "reward", scorer), ("cm", "cost", scorer),
             ("safe", "safe_rlhf", {"threshold": -0.2, "samples_per_s": 6.2}),
             ("evaluate", "evaluate", {})]
        )
    ]  # fmt: skip
    (folder / "stages.json").write_text(json.dumps(stages))
    tables = {
        "start": tabulate(judged(rng, 0.75, 0.02, 0.8)),
        "final": tabulate(judged(rng, 0.08, 0.08, 0.78)),
    }
    save_evaluation(folder / "evaluation.json", tables)
    meta = {"judged_by": "rules on the scene", "prompts": 200}
    (folder / "evaluation_meta.json").write_text(json.dumps(meta))
    write_lines(folder / "samples.jsonl", sample_rows(folder))
    return folder


def make_bare_run(folder: Path) -> Path:
    """A run folder with nothing but its config."""
    (folder / "config.yaml").write_text("name: bare\n")
    return folder


class Page(HTMLParser):
    """Tags, the places they load from, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            if key in ("src", "href", "srcset", "data", "action", "poster"):
                self.loads.append(value or "")
            if key.startswith("on"):
                self.handlers.append(key)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(build_report(make_run(tmp_path_factory.mktemp("run"))))


def test_full_report_is_one_small_file(full_page: Page) -> None:
    assert full_page.loads
    assert all(place.startswith(("data:", "#")) for place in full_page.loads)
    assert not re.search(r"@import|url\(", full_page.source)
    assert len(full_page.source) < 3_000_000


def test_anchors_of_the_contents_line_exist(full_page: Page) -> None:
    anchors = [place[1:] for place in full_page.loads if place.startswith("#")]
    assert anchors
    assert all(f'id="{anchor}"' in full_page.source for anchor in anchors)


def test_pictures_come_before_tables(full_page: Page) -> None:
    order = [full_page.source.index(mark) for mark in ("<h1>", "data:image/svg", "<table>")]
    assert order == sorted(order)


def test_summary_states_the_measured_rates(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    (run / "evaluation_meta.json").write_text('{"judged_by": "rules on the scene"}')
    start = [Outcome("text", True, i < 3, i >= 3, False, False) for i in range(4)]
    final = [Outcome("text", True, False, True, True, False) for _ in range(4)]
    save_evaluation(run / "evaluation.json", {"start": tabulate(start), "final": tabulate(final)})
    text = Page(build_report(run)).text.replace("\u202f", " ").replace("\xa0", " ")
    assert "unsafe 75.0 % → 0.0 % (n = 4" in text
    assert "rules on the scene" in text


def test_small_samples_are_not_sold_as_a_change(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    tables = {
        name: tabulate([Outcome("text", True, hit, not hit, False, False)])
        for name, hit in (("start", True), ("final", False))
    }
    save_evaluation(run / "evaluation.json", tables)
    # One prompt each: the intervals of 1/1 and 0/1 overlap, [0.21, 1] and [0, 0.79].
    assert "no clear change" in Page(build_report(run)).text


def test_every_policy_of_the_evaluation_appears(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    table = tabulate([Outcome("none", False, True, False, False, True)])
    names = ["base", "sft<1>", "run-a", "run-b", "run-c", "run-d", "run-e", "run-f"]
    save_evaluation(run / "evaluation.json", dict.fromkeys(names, table))
    page = Page(build_report(run))
    cells = page.text.split()
    assert all(cells.count(name) >= 6 for name in names)  # one row per split


def test_a_metric_without_prompts_is_a_dash_not_a_zero(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    save_evaluation(run / "evaluation.json", {"only": tabulate([])})
    page = Page(build_report(run))
    table = page.text[page.text.index("Evaluation table", page.text.index("Other stages") + 20) :]
    assert table.count("–") >= 24
    assert "0.0" not in table.split("Stages")[0]


def test_model_text_is_never_markup(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    write_lines(run / "samples.jsonl", sample_rows(run))
    rows = sample_rows_with(run, answer=ATTACK, question=ATTACK, verdict=ATTACK, id=ATTACK)
    write_lines(run / "samples.jsonl", rows)
    (run / "config.yaml").write_text(f"name: {json.dumps(ATTACK)}\n")
    page = Page(build_report(run))
    assert "script" not in page.tags
    assert not page.handlers
    assert page.text.count(ATTACK) >= 4  # shown as written


def sample_rows_with(run: Path, **changed: Any) -> list[dict[str, Any]]:
    lines = (run / "samples.jsonl").read_text().splitlines()
    return [json.loads(lines[0]) | changed, json.loads(lines[1]) | changed]


def test_gallery_shows_both_answers_and_the_picture(full_page: Page) -> None:
    with_risk = full_page.text[full_page.text.index("Answers on held-out") :]
    for title in ("Harm in the image", "Harm in the text", "together", "Harmless prompts"):
        assert title in with_risk
    pictures = [p for p in full_page.loads if p.startswith("data:image/png;base64,")]
    assert len(pictures) == 20  # four of each of the five kinds
    assert base64.b64decode(pictures[0].partition(",")[2]).startswith(b"\x89PNG")
    assert "picture 24" not in full_page.text  # the fifth of its kind


def test_a_lone_config_still_gives_a_report_that_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: bare\n")
    page = Page(build_report(tmp_path))
    assert "No evaluation stage ran" in page.text
    for name in ("evaluation.json", "samples.jsonl", "metrics.jsonl", "stages.json"):
        assert f"{name}" in page.text
    assert "img" not in page.tags


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stages.json", "No stage has finished"),
        ("evaluation.json", "No evaluation stage ran"),
        ("samples.jsonl", "No answers were kept"),
    ],
)
def test_any_one_file_may_be_missing(tmp_path: Path, full_page: Page, name: str, said: str) -> None:
    run = make_run(tmp_path)
    (run / "metrics.jsonl").unlink()  # the only slow one to draw
    (run / name).unlink()
    page = Page(build_report(run))
    assert said in page.text
    assert "No stage recorded metrics" in page.text
    assert said not in full_page.text
    assert "No stage recorded metrics" not in full_page.text


def test_metrics_that_were_not_recorded_do_not_stop_the_report(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    write_lines(
        run / "metrics.jsonl",
        [{"stage": "ppo", "kind": "safe_rlhf", "step": 0, "time": 1.7e9, "reward": 1.0}],
    )
    assert "“ppo” ran 1 iteration." in Page(build_report(run)).text


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    write_lines(run / "samples.jsonl", sample_rows(run))
    (run / "images/0.png").unlink()
    assert "images/0.png is not in the run folder" in Page(build_report(run)).text


def test_an_image_outside_the_run_is_refused(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    write_lines(run / "samples.jsonl", sample_rows(run))
    write_lines(run / "samples.jsonl", sample_rows_with(run, image="../secret.png"))
    with pytest.raises(DataError, match="outside the run folder"):
        build_report(run)


def test_a_run_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        build_report(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="'name'"):
        build_report(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: not valid YAML") as error:
        build_report(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", "{not json"),
        ("metrics.jsonl", "[1, 2]"),
        ("metrics.jsonl", '{"stage": "sft", "kind": "sft"}'),
        ("metrics.jsonl", '{"stage": "sft", "kind": "sft", "step": true}'),
        ("metrics.jsonl", '{"stage": "sft", "kind": "sft", "step": 1, "loss": NaN}'),
        ("samples.jsonl", '{"policy": "start", "id": "p"}'),
        ("samples.jsonl", '"\udcff"'),
    ],
)
def test_a_malformed_row_is_named_with_file_and_line(tmp_path: Path, name: str, line: str) -> None:
    run = make_bare_run(tmp_path)
    good = {
        "metrics.jsonl": metric_rows(random.Random(0), 1)[:2],
        "samples.jsonl": sample_rows(run)[:2],
    }
    write_lines(run / name, good[name])
    build_report(run)
    with (run / name).open("a", errors="surrogateescape") as rows:
        rows.write(line + "\n")
    with pytest.raises(DataError, match=rf"{name}, line 3"):
        build_report(run)


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    row = {"stage": "safe", "kind": "safe_rlhf", "step": 7, "reward": "high"}
    write_lines(run / "metrics.jsonl", [row])
    with pytest.raises(DataError, match=r"step 7: reward"):
        build_report(run)


def test_a_malformed_evaluation_cell_is_named(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    (run / "evaluation.json").write_text('{"start": {"all": {"unsafe": {"rate": 0.5}}}}')
    with pytest.raises(DataError, match="start / all / unsafe"):
        build_report(run)


def test_a_resumed_stage_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: resumed\n")
    steps = [(0, 1.0), (1, 2.0), (2, 3.0), (1, 20.0), (2, 30.0)]
    rows = [{"stage": "s", "kind": "safe_rlhf", "step": k, "reward": r} for k, r in steps]
    write_lines(tmp_path / "metrics.jsonl", rows)
    series = load_run(tmp_path).series
    assert series is not None
    recorded, values = series[0].column("reward")
    assert recorded.tolist() == [0, 1, 2]
    assert values.tolist() == [1.0, 20.0, 30.0]


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_lines(run / "metrics.jsonl", metric_rows(random.Random(3), 1)[:60])
    first = build_report(run).read_bytes()
    assert build_report(run).read_bytes() == first


def test_many_stages_of_ppo_end_in_their_own_sections(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path)
    rows = [
        {"stage": stage, "kind": "safe_rlhf", "step": 0, "time": 1.7e9, "lambda": 1.5}
        for stage in ("a", "b", "c")
    ]
    for some in (rows[:2], rows):
        write_lines(run / "metrics.jsonl", some)
        head, _, sections = Page(build_report(run)).text.partition("Safe RLHF training")
        for row in some:
            said = f"“{row['stage']}” ran 1 iteration, with λ = 1.5."
            assert (said in head) == (len(some) < 3)
            assert said in sections

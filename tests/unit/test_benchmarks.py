"""Benchmarks: their published layouts, and what is said of a folder that is not complete."""

from collections import Counter
from pathlib import Path

import pytest

from rlsys.errors import DataError
from rlsys.evaluation.benchmark_rows import BenchmarkRows
from rlsys.evaluation.benchmarks.benchmark import Asked, Item, Rule
from rlsys.evaluation.benchmarks.figstep import QUESTION
from rlsys.evaluation.benchmarks.refusals import KEYWORDS, complies, refuses
from rlsys.evaluation.benchmarks.registry import BENCHMARKS
from rlsys.judging.prompts import RUBRICS, load_rubrics
from rlsys.judging.reply_schemas import REPLY_SCHEMAS
from tests.benchmark_data import WRITERS, cell, write_json, write_parquet

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(name: str, folder: Path) -> list[Item]:
    folder = folder / name
    WRITERS[name](folder)
    return BENCHMARKS[name].read(folder)


def test_every_benchmark_has_rows_to_be_tested_on_and_is_documented() -> None:
    assert WRITERS.keys() == BENCHMARKS.keys()
    text = DOCS.read_text(encoding="utf-8")
    for name, each in BENCHMARKS.items():
        assert f"`{name}`" in text, name
        assert each.source in text, name


@pytest.mark.parametrize(
    ("name", "items", "categories", "subsets"),
    [
        ("siuo", 4, 2, 1),
        ("figstep", 4, 2, 1),
        ("figstep_tiny", 4, 2, 1),
        ("figstep_benign", 2, 1, 1),
        ("vlguard", 3, 2, 3),
        ("mm_safetybench", 39, 13, 3),
        ("mossbench", 3, 3, 1),
        ("spa_vl", 5, 2, 2),
        ("beavertails_v", 4, 2, 1),
    ],
)
def test_the_published_layout_is_read(
    name: str, items: int, categories: int, subsets: int, tmp_path: Path
) -> None:
    found = read(name, tmp_path)
    assert len(found) == items
    assert len({item.category for item in found}) == categories
    assert len({item.subset for item in found}) == subsets
    assert len({item.prompt.id for item in found}) == items
    for item in found:
        assert item.prompt.open_image().size == (56, 56)
    for metric in BENCHMARKS[name].metrics:
        assert any(metric.counts(item) for item in found), metric.name


def test_what_goes_with_a_prompt(tmp_path: Path) -> None:
    first = read("siuo", tmp_path)[0]
    assert first.notes == {"warning": "the cup is hot", "reference": "tea, and it is hot"}
    assert {i.prompt.question for i in read("figstep", tmp_path)} == {QUESTION}
    assert {i.prompt.question for i in read("figstep_benign", tmp_path)} == {QUESTION}
    by_subset = {item.subset: item for item in read("vlguard", tmp_path)}
    assert by_subset["safe_safes"].reference == "it is red"
    assert by_subset["unsafes"].category == "deception"
    kinds = {item.subset: item.prompt.question for item in read("mm_safetybench", tmp_path)}
    assert kinds["SD"].startswith("The image")
    assert kinds["TYPO"].startswith("The bottom")
    assert kinds["SD_TYPO"] == kinds["TYPO"]


def test_scenarios_have_their_rubrics(tmp_path: Path) -> None:
    (metric,) = (m for m in BENCHMARKS["mm_safetybench"].metrics if isinstance(m, Asked))
    used = Counter(metric.rubric(item) for item in read("mm_safetybench", tmp_path))
    assert used == {"mm_unsafe": 24, "mm_lobbying": 3, "mm_advice": 9, "mm_government": 3}
    assert not metric.shows_image


@pytest.mark.parametrize("name", [*BENCHMARKS])
def test_a_folder_without_its_file_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing|no file of the split"):
        BENCHMARKS[name].read(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        BENCHMARKS[name].read(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("siuo", "data/images/S-02.png"),
        ("figstep", "data/images/SafeBench/query_ForbidQI_2_1_6.png"),
        ("figstep_benign", "data/FigStep-Benign/images/1.png"),
        ("vlguard", "test/HOD/b.png"),
        ("mm_safetybench", "data/imgs/07-Sex/SD_TYPO/0.jpg"),
        ("mossbench", "data/images/3.png"),
    ],
)
def test_a_missing_image_is_named_with_its_row(name: str, image: str, tmp_path: Path) -> None:
    read(name, tmp_path)
    (tmp_path / name / image).unlink()
    with pytest.raises(DataError, match=f"record .*: its image .*{Path(image).name} is missing"):
        BENCHMARKS[name].read(tmp_path / name)


def test_a_row_without_an_image_or_a_column_is_named(tmp_path: Path) -> None:
    table = tmp_path / "spa" / "test" / "harm-00000-of-00001.parquet"
    rows = [{"question": "a ?", "image": cell(1)}, {"question": "b ?", "image": None}]
    write_parquet(table, rows)
    write_parquet(table.with_name("help-00000-of-00001.parquet"), rows)
    with pytest.raises(DataError, match=r"\[harm\], row 1: has no image"):
        BENCHMARKS["spa_vl"].read(tmp_path / "spa")
    write_json(tmp_path / "siuo_gen.json", [{"question_id": 1, "image": "a.png"}])
    with pytest.raises(DataError, match="record 1: has no question"):
        BENCHMARKS["siuo"].read(tmp_path)
    (tmp_path / "siuo_gen.json").write_text("{")
    with pytest.raises(DataError, match=r"siuo_gen\.json: cannot be read"):
        BENCHMARKS["siuo"].read(tmp_path)


def test_other_processes_read_the_same_rows_or_say_where_they_do_not(tmp_path: Path) -> None:
    read("siuo", tmp_path)
    source = BenchmarkRows("siuo", str(tmp_path / "siuo"), 512, max_pixels=100)
    rows = source.load()
    assert len(rows) == 4
    assert rows[0].open_image().size == (10, 10)
    other = BenchmarkRows("siuo", str(tmp_path / "siuo"), 512, ids="another")
    with pytest.raises(DataError, match=r"4 items of siuo here .* complete on every node"):
        other.load()


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but no.", True),
        ("It is ILLEGAL to park here, and this is how it is done.", True),
        ("It is not", True),
        ("It is not hot. Take the cup and pour.", False),
        ("Sure! Here are the steps: first, boil water.", False),
        ("", True),
        ("  \n", True),
    ],
)
def test_refusals_by_keywords(answer: str, refused: bool) -> None:
    assert refuses(answer) is refused
    assert complies(answer) is not refused


def test_no_keyword_holds_another() -> None:
    assert all(k == k.lower() for k in KEYWORDS)
    assert [(a, b) for a in KEYWORDS for b in KEYWORDS if a != b and a in b] == []


def test_rubrics_are_there_and_every_metric_has_its_grader(tmp_path: Path) -> None:
    assert load_rubrics().texts.keys() == RUBRICS.keys() <= REPLY_SCHEMAS.keys()
    used = set()
    for name, each in BENCHMARKS.items():
        used |= {comparison.rubric for comparison in each.comparisons}
        for metric in each.metrics:
            if isinstance(metric, Asked):
                used |= {metric.rubric(item) for item in read(name, tmp_path)}
        assert each.needs_judge == (not any(isinstance(m, Rule) for m in each.metrics))
    assert used == set(RUBRICS), "a rubric that nothing uses, or one that is missing"

"""The data of a run: what stages learn from, and what is refused before any work."""

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from rlsys.artifacts import ArtifactStore
from rlsys.config.feedback import ObserveStage
from rlsys.config.schema import DataConfig, RunConfig
from rlsys.config.stages import FilterStage, PpoConfig, SafeRlhfStage, SftStage
from rlsys.data.prepare import Prepared, names_folder, prepare
from rlsys.data.record import Record, Records, rows_digest
from rlsys.data.records import load_records
from rlsys.errors import ConfigError, DataError
from tests.helpers import row

Row = dict[str, Any]
SPLITS = ("train", "validation", "evaluation")


def talk(name: str, image: str | None, *answers: str) -> Row:
    turns = [
        {"from": speaker, "value": text}
        for number, answer in enumerate(answers)
        for speaker, text in (("human", f"question {number} ?"), ("gpt", answer))
    ]
    if image:
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
    return {"id": name, "conversations": turns} | ({"image": image} if image else {})


TALKS = [talk("two", "teach.png", "a cup", "drink"), talk("plain", None, "well")]


def write_split(folder: Path, split: str, rows: Sequence[Row]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two rows of labelled answers a split, no picture shown twice, and conversations."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate((*SPLITS, "teach")):
        Image.new("RGB", (56, 56), (40 * number, 90, 30)).save(folder / f"{name}.png")
    for split in SPLITS:
        pair = [row(n, id=f"{split}-{n}", image=f"{split}.png") for n in (0, 1)]
        write_split(folder, split, pair)
    write_split(folder, "teach", TALKS)
    return folder


def prepared(folder: Path, *stages: Any, **data: Any) -> Prepared:
    config = RunConfig(
        name="x",
        data=DataConfig(**{"source": str(folder), **data}),
        groups={},
        stages={f"stage-{number}": stage for number, stage in enumerate(stages)},
    )
    return prepare(config, ArtifactStore(folder.parent / "artifacts"))


def ids(data: Prepared, split: str) -> list[str]:
    return [record.id for record in data.training[split].rows]


def test_conversations_are_a_split_to_learn_from(folder: Path) -> None:
    joint = SftStage(split="train+teach", steps=1)
    data = prepared(folder, SftStage(split="teach", steps=1), joint)
    assert ids(data, "teach") == ["two", "two/1", "plain"]
    assert [record.responses[0] for record in data.training["teach"].rows] == [
        "a cup", "drink", "well",
    ]  # fmt: skip
    assert ids(data, "train+teach") == ["train-0", "train-1", "two", "two/1", "plain"]
    paired = {split: records.paired for split, records in data.training.items()}
    assert paired == {"train": True, "teach": False, "train+teach": False}
    assert data.summary.startswith("2 train, 3 teach, 2 validation, 2 evaluation")


def test_only_the_splits_that_stages_learn_from_are_read(folder: Path) -> None:
    assert list(prepared(folder, SftStage(split="", conversations="x", steps=1)).training) == [
        "train"
    ]
    assert list(prepared(folder, ObserveStage(judge="x", split="teach")).training) == [
        "train", "teach",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"stages.stage-0.split: teach holds turns"):
        prepared(folder, FilterStage(guard="x", split="teach"))
    with pytest.raises(DataError, match=r"neither more\.jsonl nor more\.parquet"):
        prepared(folder, SftStage(split="more", steps=1))


def test_a_conversation_about_a_held_out_picture_is_left_out(folder: Path) -> None:
    write_split(folder, "teach", [*TALKS, talk("seen", "evaluation.png", "a box", "well")])
    data = prepared(folder, SftStage(split="train+teach", steps=1))
    assert data.leaked["train+teach"] == {"seen", "seen/1"}
    assert ids(data, "train+teach") == ["train-0", "train-1", "two", "two/1", "plain"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("talks", [TALKS, TALKS[:1], TALKS[1:]], ids=["both", "image", "plain"])
def test_what_is_measured_or_ranked_needs_two_labelled_answers(
    split: str, talks: list[Row], folder: Path
) -> None:
    write_split(folder, split, talks)
    with pytest.raises(DataError) as found:
        prepared(folder)
    assert str(found.value) == f"{folder} [{split}]: needs two labelled answers a row, not turns"


def test_sizes_are_for_built_in_worlds_and_needed_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sizes: only built-in worlds draw rows"):
        prepared(folder, sizes={"train": 30})
    with pytest.raises(ConfigError, match=r"data\.sizes: riskworld needs .* for evaluation"):
        prepared(folder, source="riskworld", sizes={"train": 30, "validation": 30})


def test_a_built_in_world_is_drawn_once(folder: Path) -> None:
    sizes = {"train": 20, "validation": 20, "evaluation": 20, "judge": 20}
    stage = SftStage(split="judge", steps=1)
    first, again = (prepared(folder, stage, source="riskworld", sizes=sizes) for _ in range(2))
    assert first.digest == again.digest
    assert first.source == again.source
    assert len(first.training["judge"]) == 20
    assert not first.training["judge"].paired
    assert not first.leaked["judge"]
    assert first.oracle is not None


def test_rows_of_a_hub_are_known_by_what_they_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the dataset's name: it may be changed there."""
    changed: dict[str, Any] = {}

    def load_dataset(_: str, split: str) -> datasets.Dataset:
        color = (40 * SPLITS.index(split), 90, 30)
        rows = []
        for n in (0, 1):
            picture = io.BytesIO()
            shown = changed.get("shown", {}).get(split, color)
            Image.new("RGB", (56, 56), shown).save(picture, "png")
            cell = {"bytes": picture.getvalue(), "path": None}
            words = changed.get("words", {}) if split == "validation" else {}
            rows.append(row(n, id=f"{split}-{n}") | words | {"image": cell})
        return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def digest() -> str:
        return prepared(folder, source="someone/something").digest

    before = digest()
    assert digest() == before
    changed["words"] = {"question": "another ?"}
    asked = digest()
    changed["words"] |= {"response_1": "another ."}
    answered = digest()
    changed["shown"] = {"evaluation": (1, 2, 3)}
    assert len({before, asked, answered, digest()}) == 4


def test_where_a_row_stands_and_what_its_file_shows_count(folder: Path) -> None:
    rows = load_records(str(folder), "train").rows

    def digest(*splits: list[Record]) -> str:
        return rows_digest(Records(split, Counter()) for split in splits)

    ways = [digest(rows), digest(rows[::-1]), digest(rows[:1], rows[1:]), digest([], rows)]
    Image.new("RGB", (56, 56), (1, 2, 3)).save(folder / "train.png")
    assert len({*ways, digest(rows)}) == 5


@pytest.mark.parametrize("place", ["{}/nowhere", "./nowhere", "../nowhere", "a/b/c", "~/x", "x/"])
def test_a_folder_that_is_not_there_is_not_asked_of_a_hub(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked a hub"))
    source = place.format(folder)
    with pytest.raises(ConfigError, match=rf"data\.source: {re.escape(source)}: no such folder"):
        prepared(folder, source=source)


def test_a_name_below_a_folder_is_not_asked_of_a_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert names_folder("data/absent")
    assert not names_folder("owner/name")
    assert not names_folder("PKU-Alignment/BeaverTails-V")
    assert not names_folder("name")


def test_an_iteration_needs_as_many_rows_as_prompts(folder: Path) -> None:
    fits = SafeRlhfStage(iterations=1, ppo=PpoConfig(prompts=2))
    assert len(prepared(folder, fits).train) == 2
    with pytest.raises(ConfigError, match=r"stages\.stage-1\.ppo\.prompts: 3 .* has 2 usable rows"):
        prepared(folder, fits, SafeRlhfStage(iterations=1, ppo=PpoConfig(prompts=3)))


def test_lines_that_are_no_utf_8_are_named(folder: Path) -> None:
    train = folder / "train.jsonl"
    train.write_bytes(train.read_bytes() + '{"question": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.jsonl, line 3: not UTF-8"):
        prepared(folder)
    train.write_bytes('{"question": "é"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: not UTF-8"):
        prepared(folder)

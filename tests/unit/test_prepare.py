"""The data of a run: what stages learn from, and what is refused before any work."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from rlsys.artifacts import ArtifactStore
from rlsys.config.lagrange import LagrangeConfig
from rlsys.config.schema import DataConfig, RunConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.prepare import Datasets, Read, names_folder, prepare
from rlsys.data.rows import Prompt, Rows, rows_digest
from rlsys.data.slice import RowKind
from rlsys.data.source import load_pairs
from rlsys.display import Display
from rlsys.errors import ConfigError, DataError
from rlsys.stages.data_check import check_data
from rlsys.stages.disentangled import DisentangledStage
from rlsys.stages.dpo import DpoStage
from rlsys.stages.evaluate import EvaluateStage
from rlsys.stages.filter import FilterStage
from rlsys.stages.grpo import GrpoStage
from rlsys.stages.guard import GuardStage
from rlsys.stages.guarded import GuardedStage
from rlsys.stages.judge import JudgeStage
from rlsys.stages.observe import ObserveStage
from rlsys.stages.recipe import run_recipe
from rlsys.stages.registry import STAGES
from rlsys.stages.rlaif import RlaifStage
from rlsys.stages.safe_rlhf import SafeRlhfStage
from rlsys.stages.scorer import ScorerStage
from rlsys.stages.sft import SftStage
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


def prepared(folder: Path, *stages: Any, **data: Any) -> Datasets:
    config = RunConfig(
        name="x",
        data=DataConfig(**{"source": str(folder), **data}),
        groups={},
        stages={f"stage-{number}": stage for number, stage in enumerate(stages)},
    )
    reads = [(n, r) for n, each in config.stages.items() for r in STAGES[each.kind].reads(each)]
    return prepare(config, ArtifactStore(folder.parent / "artifacts"), reads)


def checked(folder: Path, *stages: Any, **data: Any) -> Datasets:
    found = prepared(folder, *stages, **data)
    check_data(found)
    return found


def sft(split: str = "train", **keys: Any) -> SftStage:
    return SftStage(split=split, steps=1, **keys)


def auto(threshold: str = "auto") -> SafeRlhfStage:
    return SafeRlhfStage(iterations=1, lagrange=LagrangeConfig(threshold=threshold))


def auto_on(split: str) -> SafeRlhfStage:
    return SafeRlhfStage(iterations=1, split=split)


IMITATED = ("train", RowKind.DEMONSTRATIONS, "more_helpful")
EVALUATE = EvaluateStage(policies={"x": "x"})
REWARD = ScorerStage(kind="reward", steps=1)


def ids(rows: Rows[Prompt]) -> list[str]:
    return [row.id for row in rows.rows]


def only(folder: Path, **splits: Sequence[Row]) -> Path:
    """The folder with these splits and no other."""
    for path in folder.glob("*.jsonl"):
        path.unlink()
    for split, rows in splits.items():
        write_split(folder, split, rows)
    return folder


def test_conversations_are_a_split_to_imitate(folder: Path) -> None:
    data = prepared(folder, sft("teach"), sft("train+teach"), REWARD)
    found = data.demonstrations("teach", "more_helpful")
    assert ids(found) == ["two", "two/1", "plain"]
    assert [row.answer for row in found.rows] == ["a cup", "drink", "well"]
    both = data.demonstrations("train+teach", "more_helpful")
    assert ids(both) == ["train-0", "train-1", "two", "two/1", "plain"]
    assert data.summary == (
        "teach: 3 demonstrations (1 without an image); "
        "train+teach: 5 demonstrations (1 without an image); train: 2 ranked pairs; "
        "evaluation: 2 ranked pairs"
    )


def test_a_recipe_that_only_imitates_needs_only_what_it_imitates(folder: Path) -> None:
    rows = [{"question": "a ?", "answer": "b", "image": "train.png"}, {"question": "c ?"}]
    data = prepared(only(folder, train=[{**each, "answer": "x"} for each in rows]), sft())
    assert len(data.demonstrations("train", "more_helpful")) == 2
    assert data.held_out == {}
    data = prepared(only(folder, train=[row(n, image="train.png") for n in (0, 1)]), sft())
    assert len(data.demonstrations("train", "more_helpful")) == 2
    with pytest.raises(DataError, match="no file of the split 'evaluation'; splits there: train"):
        prepared(folder, sft(), EVALUATE)
    with pytest.raises(DataError, match="no file of the split 'more'"):
        prepared(folder, sft("more"))


def test_ai_feedback_needs_only_prompts(folder: Path) -> None:
    rows = [{"question": f"{n} ?", "image": "train.png"} for n in range(3)]
    rlaif, judge = RlaifStage(judge="stage-0", policy="x"), JudgeStage(model="x")
    data = prepared(only(folder, train=rows), judge, rlaif)
    assert ids(data.prompts("train")) == ["train-000000", "train-000001", "train-000002"]
    assert data.summary == "train: 3 prompts"
    assert ids(data.slice("train", RowKind.PROMPTS).load()) == ids(data.prompts("train"))
    with pytest.raises(DataError, match=r"line 1: column 'response_1' is missing"):
        prepared(only(folder, train=[{**rows[0], "category": "none"}]), DpoStage(steps=1))


def test_a_judge_is_asked_about_one_picture_and_one_question(folder: Path) -> None:
    asking = DisentangledStage(judge="x", policy="x")
    write_split(folder, "evaluation", [{"question": "x ?"}, row(0, image="train.png")])
    data = prepared(folder, asking)
    assert ids(data.prompts("evaluation")) == ["row-0"]
    assert "rejected 1 x no image, and a judge needs one" in data.summary
    assert data.slice("evaluation", RowKind.PROMPTS).load().rows == data.prompts("evaluation").rows
    two = {"id": "both", "question": "x ?", "images": ["train.png", "teach.png"]}
    write_split(folder, "evaluation", [two, row(0, image="train.png")])
    assert "1 x several images, and a judge needs one" in prepared(folder, asking).summary
    write_split(folder, "evaluation", [TALKS[0]])
    assert ids(prepared(folder, asking).prompts("evaluation")) == ["two"]
    assert ids(prepared(folder, EVALUATE).prompts("evaluation")) == ["two", "two/1"]
    write_split(folder, "evaluation", [TALKS[1]])
    with pytest.raises(DataError, match=r"no usable row of 1; rejected: 1 x no image, and a judge"):
        prepared(folder, asking)
    assert len(prepared(folder, EVALUATE).prompts("evaluation")) == 1


def test_what_a_judge_cannot_be_asked_is_imitated_all_the_same(folder: Path) -> None:
    data = prepared(folder, sft("teach"), RlaifStage(judge="x", policy="x", split="teach"),
                    min_usable=0.3)  # fmt: skip
    assert ids(data.demonstrations("teach", "more_helpful")) == ["two", "two/1", "plain"]
    assert ids(data.prompts("teach")) == ["two"]


def test_too_few_usable_rows_are_an_error(folder: Path) -> None:
    rows = [row(n, id=f"t-{n}", image="train.png" if n < 2 else "none.png") for n in range(5)]
    write_split(folder, "train", rows)
    with pytest.raises(DataError, match=r"2 usable rows of 5; data.min_usable is 0.5; rejected: 3"):
        prepared(folder, DpoStage(steps=1))
    data = prepared(folder, DpoStage(steps=1), min_usable=0.4)
    assert ids(data.ranked("train")) == ["t-0", "t-1"]
    assert data.summary == "train: 2 ranked pairs; rejected 3 x image file is absent"


def test_a_picture_that_cannot_be_read_is_counted(folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "train.png").read_bytes()[:60])
    rows = [row(0, image="broken.png"), row(1, id="whole", image="train.png")]
    write_split(folder, "train", rows)
    data = prepared(folder, DpoStage(steps=1))
    assert ids(data.ranked("train")) == ["whole"]
    assert "rejected 1 x image cannot be read" in data.summary
    assert ids(data.slice("train", RowKind.RANKED).load()) == ["whole"]


def coloured(folder: Path, count: int) -> list[Row]:
    """Rows about pictures of one colour each, every picture twice."""
    for n in range(count):
        Image.new("RGB", (8, 8), (n, 7, 7)).save(folder / f"c{n}.png")
    return [row(n % 2, id=f"c{n}-{k}", image=f"c{n}.png") for n in range(count) for k in (0, 1)]


def test_validation_is_cut_off_by_picture_where_there_is_none(folder: Path) -> None:
    only(folder, train=coloured(folder, 60), evaluation=[row(0, image="evaluation.png")])
    stages = (DpoStage(steps=1), auto(), EVALUATE)
    data = prepared(folder, *stages, validation_share=0.25)
    train, validation = data.ranked("train"), data.pairs("validation")
    assert len(train) + len(validation) == 120
    assert 10 <= len(validation) <= 50
    pictures = [{row.image for row in rows.rows} for rows in (train, validation)]
    assert pictures[0].isdisjoint(pictures[1])
    again = prepared(folder, *stages, validation_share=0.25)
    assert ids(again.pairs("validation")) == ids(validation)
    assert again.digest == data.digest
    for split, rows in (("train", train), ("validation", validation)):
        kind = RowKind.RANKED if split == "train" else RowKind.PAIRS
        assert ids(data.slice(split, kind).load()) == ids(rows)
    assert f"rejected {len(validation)} x kept for validation" in data.summary
    more = prepared(folder, *stages, validation_share=0.5)
    assert set(ids(validation)) < set(ids(more.pairs("validation")))
    assert more.digest != data.digest
    assert len(prepared(folder, DpoStage(steps=1)).ranked("train")) == 120, "nothing reads it"
    with pytest.raises(ConfigError, match=r"'train\+validation' joins train with validation"):
        prepared(folder, sft("train+validation"))


def test_text_only_rows_are_cut_off_by_their_question(folder: Path) -> None:
    rows = [row(n % 2, id=f"t{n}", question=f"{n % 30} ?", image=None) for n in range(60)]
    data = prepared(only(folder, train=rows), auto(), validation_share=0.4)
    shares = [
        {row.question for row in data.prompts(split).rows} for split in ("train", "validation")
    ]
    assert shares[0].isdisjoint(shares[1])
    assert shares[0] | shares[1] == {f"{n} ?" for n in range(30)}
    assert min(map(len, shares)) > 3


def test_training_rows_that_show_a_validation_picture_are_left_out(folder: Path) -> None:
    seen = row(0, id="seen", image="validation.png")
    write_split(folder, "train", [row(0, id="own", image="train.png"), seen])
    data = prepared(folder, auto())
    assert ids(data.prompts("train")) == ["own"]
    assert "rejected 1 x excluded: the image is held out" in data.summary


@pytest.mark.parametrize(
    ("stage", "found"),
    [
        (sft("teach"), "teach: 3 demonstrations (1 without an image)"),
        (sft("", conversations="x"), ""),
        (sft(filter="x"), "train: 2 demonstrations, 2 pairs"),
        (DpoStage(steps=1), "train: 2 ranked pairs"),
        (REWARD, "train: 2 ranked pairs; evaluation: 2 ranked pairs"),
        (GuardStage(steps=1), "train: 2 pairs; evaluation: 2 pairs"),
        (auto("0"), "train: 2 prompts"),
        (auto(), "train: 2 prompts; validation: 2 pairs"),
        (FilterStage(guard="x", split="validation"), "validation: 2 pairs"),
        (ObserveStage(judge="x", split="teach"), "teach: 3 prompts (1 without an image)"),
        (JudgeStage(), ""),
        (RlaifStage(judge="x"), "train: 2 prompts"),
        (DisentangledStage(judge="x"), "evaluation: 2 prompts"),
        (GuardedStage(), "evaluation: 2 prompts"),
        (EVALUATE, "evaluation: 2 prompts"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_a_stage_reads(stage: Any, found: str, folder: Path) -> None:
    assert prepared(folder, stage).summary == found


def test_a_recipe_that_only_imitates_or_asks_a_judge_reads_no_pairs() -> None:
    """An sft stage alone, and an rlaif stage with its judge on data without an oracle."""
    imitated = Read("train", RowKind.DEMONSTRATIONS, "more_helpful", learned=True)
    assert list(STAGES["sft"].reads(sft())) == [imitated]
    asked = Read("train", RowKind.PROMPTS, learned=True, judged=True)
    assert list(STAGES["rlaif"].reads(RlaifStage(judge="x"))) == [asked]
    assert all(read.world_only for read in STAGES["judge"].reads(JudgeStage()))
    assert list(STAGES["evaluate"].reads(EVALUATE)) == [
        Read("evaluation", RowKind.PROMPTS, held_out=True)
    ]


@pytest.mark.parametrize(
    ("stage", "found"),
    [
        (sft("teach"), "teach: 3 demonstrations (1 without an image)"),
        (DpoStage(steps=1, split="more"), "more: 2 ranked pairs"),
        (
            ScorerStage(kind="cost", steps=1, split="train+more", held_out="validation"),
            "train+more: 4 pairs; validation: 2 pairs",
        ),
        (
            GuardStage(steps=1, split="more", held_out="validation"),
            "more: 2 pairs; validation: 2 pairs",
        ),
        (
            SafeRlhfStage(iterations=1, split="more"),
            "more: 2 prompts; validation: 2 pairs",
        ),
        (
            SafeRlhfStage(
                iterations=1,
                ppo=PpoConfig(ptx_coef=0.1, ptx_split="teach"),
                lagrange=LagrangeConfig(threshold="0"),
            ),
            "train: 2 prompts; teach: 3 demonstrations (1 without an image)",
        ),
        (GrpoStage(iterations=1, split="train+more"), "train+more: 4 prompts"),
        (RlaifStage(judge="x", split="more"), "more: 2 prompts"),
        (ObserveStage(judge="x", split="more"), "more: 2 prompts"),
        (DisentangledStage(judge="x", split="validation"), "validation: 2 prompts"),
        (GuardedStage(split="validation"), "validation: 2 prompts"),
        (EvaluateStage(policies={"x": "x"}, split="validation"), "validation: 2 prompts"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_stage_reads_the_splits_it_names_and_no_other(
    stage: Any, found: str, folder: Path
) -> None:
    Image.new("RGB", (56, 56), (200, 9, 30)).save(folder / "more.png")
    write_split(folder, "more", [row(n, id=f"more-{n}", image="more.png") for n in (0, 1)])
    (folder / "evaluation.jsonl").unlink()
    assert prepared(folder, stage).summary == found


def test_a_judge_in_a_world_is_measured_on_the_split_it_names(folder: Path) -> None:
    judge = JudgeStage(model="x", split="validation")
    data = prepared(folder, judge, source="riskworld", sizes={"validation": 20})
    assert data.summary == "validation: 20 pairs"


def test_a_split_that_does_not_exist_is_named(folder: Path) -> None:
    for stage in (ScorerStage(kind="reward", steps=1, held_out="absent"), auto_on("train+absent")):
        with pytest.raises(DataError, match="no file of the split 'absent'") as found:
            prepared(folder, stage)
        assert "\n" not in str(found.value)


def test_whatever_is_measured_on_is_kept_from_training(folder: Path) -> None:
    """Validation shows a picture of the evaluation split, train one of each."""
    for split, name, shown in (("train", "t", SPLITS), ("validation", "v", SPLITS[1:])):
        rows = [row(0, id=f"{name}-{each}", image=f"{each}.png") for each in shown]
        write_split(folder, split, rows)
    tuned = EvaluateStage(policies={"x": "x"}, split="validation")
    alone = prepared(folder, DpoStage(steps=1), tuned)
    assert ids(alone.pairs("train")) == ["t-train"], "validation shows the other two"
    assert ids(alone.prompts("validation")) == ["v-validation", "v-evaluation"]
    both = prepared(folder, DpoStage(steps=1), tuned, REWARD)
    assert ids(both.pairs("train")) == ["t-train"]
    assert ids(both.prompts("validation")) == ["v-validation"]
    assert ids(both.pairs("evaluation")) == ["evaluation-0", "evaluation-1"]


def test_a_picture_that_is_held_out_is_not_learned_from(folder: Path) -> None:
    write_split(folder, "teach", [*TALKS, talk("seen", "evaluation.png", "a box", "well")])
    learned = sft("train+teach")
    data = prepared(folder, learned, EVALUATE)
    found = data.demonstrations("train+teach", "more_helpful")
    assert ids(found) == ["train-0", "train-1", "two", "two/1", "plain"]
    loaded = data.slice("train+teach", RowKind.DEMONSTRATIONS, "more_helpful").load()
    assert loaded.rows == found.rows
    assert "rejected 2 x excluded: the image is held out" in data.summary
    alone = prepared(folder, learned)
    assert len(alone.demonstrations("train+teach", "more_helpful")) == 7
    assert alone.digest != data.digest
    assert alone.digest == prepared(folder, DpoStage(steps=1)).digest


def test_any_of_several_pictures_may_be_held_out(folder: Path) -> None:
    many = [{"id": "own", "question": "?", "images": ["train.png", "teach.png"]},
            {"id": "seen", "question": "?", "images": ["train.png", "evaluation.png"]}]  # fmt: skip
    write_split(folder, "train", many)
    for _ in range(2):  # the second time from the hashes that were kept
        data = prepared(folder, auto("0"), EVALUATE)
        assert ids(data.prompts("train")) == ["own"]
    shown = ["validation.png", "train.png"]
    write_split(folder, "evaluation", [{"question": "?", "images": shown}])
    with pytest.raises(DataError, match="no usable row of 2; rejected: 2 x excluded"):
        prepared(folder, auto("0"), EVALUATE)


def test_what_is_held_out_cannot_be_learned_from(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.stage-0: learns from the split validation"):
        prepared(folder, sft("train+validation"), EVALUATE, evaluation_split="validation")
    with pytest.raises(ConfigError, match=r"evaluation, which stages\.stage-1 is measured on"):
        prepared(folder, ObserveStage(judge="x", split="evaluation"), EVALUATE)
    data = prepared(folder, auto(), EVALUATE, evaluation_split="validation")
    assert ids(data.pairs("validation")) == ids(data.prompts("evaluation"))


@pytest.mark.parametrize(
    ("stage", "split"),
    [(DpoStage(steps=1), "train"), (REWARD, "evaluation"), (auto(), "validation")],
)
@pytest.mark.parametrize("talks", [TALKS, TALKS[:1], TALKS[1:]], ids=["both", "image", "plain"])
def test_what_is_measured_or_ranked_needs_two_labelled_answers(
    stage: Any, split: str, talks: list[Row], folder: Path
) -> None:
    write_split(folder, split, talks)
    with pytest.raises(DataError) as found:
        prepared(folder, stage)
    assert str(found.value) == (
        f"{folder / split}.jsonl, line 1: column 'response_1' is missing "
        "(read as conversations in LLaVA's format)"
    )


def test_a_tokenizer_learns_from_all_that_is_learned_from(folder: Path) -> None:
    data = prepared(folder, sft("teach"), sft(), sft(target="safer"), auto(), REWARD)
    assert data.learned == [
        ("teach", RowKind.DEMONSTRATIONS, "more_helpful"),
        ("train", RowKind.RANKED, ""),
    ]
    rows = [*data.demonstrations("teach", "more_helpful").rows, *data.pairs("train").rows]
    assert data.texts() == [text for each in rows for text in each.texts]


def test_sizes_are_for_built_in_worlds_and_needed_where_a_stage_reads(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sizes: only built-in worlds draw rows"):
        prepared(folder, sft(), sizes={"train": 30})
    sizes = {"train": 20, "judge_sft": 20}
    named = r"data\.sizes: riskworld needs .* for validation, which stages\.stage-1 reads"
    with pytest.raises(ConfigError, match=named):
        prepared(folder, sft(), auto(), source="riskworld", sizes=sizes)
    data = prepared(folder, sft(), source="riskworld", sizes=sizes)
    assert data.summary == "train: 20 demonstrations"


def test_a_built_in_world_is_drawn_once(folder: Path) -> None:
    sizes = {"evaluation": 20, "judge_sft": 20}
    stages = (sft("judge_sft"), JudgeStage(model="x"))
    first, again = (prepared(folder, *stages, source="riskworld", sizes=sizes) for _ in range(2))
    assert first.digest == again.digest
    assert first.source == again.source
    assert len(first.demonstrations("judge_sft", "more_helpful")) == 20
    assert len(first.pairs("evaluation")) == 20
    assert "rejected" not in first.summary
    assert first.oracle is not None


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, Sequence[str]], load: Any) -> None:
    """A hub with one dataset. Args: splits: by configuration; load: gives the rows of one."""
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda _: list(splits))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda _, config: splits[config])
    monkeypatch.setattr(datasets, "load_dataset", load)


def test_every_configuration_of_a_hub_is_read_or_those_that_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(_: str, config: str, split: str) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"question": f"{config} {split} {n} ?"} for n in (0, 1)])

    hub(monkeypatch, {"a": ("train",), "b": ("train", "evaluation"), "c": ("harm",)}, load_dataset)
    data = prepared(folder, auto("0"), EVALUATE, source="someone/something")
    asked = [row.question for row in data.prompts("train").rows]
    assert asked == ["a train 0 ?", "a train 1 ?", "b train 0 ?", "b train 1 ?"]
    assert [row.question[0] for row in data.prompts("evaluation").rows] == ["b", "b"]
    assert ids(data.slice("train", RowKind.PROMPTS).load()) == ids(data.prompts("train"))
    named = prepared(folder, auto("0"), source="someone/something", configs=["b"])
    assert [row.question[0] for row in named.prompts("train").rows] == ["b", "b"]
    with pytest.raises(DataError, match=r"data.configs: someone/something has no 'd'; it has a, b"):
        prepared(folder, auto("0"), source="someone/something", configs=["d"])
    with pytest.raises(DataError, match="no split 'other'; splits there: evaluation, harm, train"):
        prepared(folder, sft("other"), source="someone/something")


def test_rows_of_a_hub_are_known_by_what_they_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the dataset's name: it may be changed there."""
    changed: dict[str, Any] = {}

    def load_dataset(_: str, config: str, split: str) -> datasets.Dataset:
        assert config == "default"
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

    hub(monkeypatch, {"default": SPLITS}, load_dataset)

    def digest() -> str:
        stages = (DpoStage(steps=1), auto(), EVALUATE)
        return prepared(folder, *stages, source="someone/something").digest

    before = digest()
    assert digest() == before
    changed["words"] = {"question": "another ?"}
    asked = digest()
    changed["words"] |= {"response_1": "another ."}
    answered = digest()
    changed["shown"] = {"evaluation": (1, 2, 3)}
    assert len({before, asked, answered, digest()}) == 4


def test_where_a_row_stands_and_what_its_file_shows_count(folder: Path) -> None:
    rows = load_pairs(str(folder), "train").rows

    def digest(*splits: Sequence[Prompt]) -> str:
        return rows_digest(Rows(split) for split in splits)

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


def test_costs_need_answers_of_either_label_to_be_calibrated_on(folder: Path) -> None:
    needs = SafeRlhfStage(iterations=1, ppo=PpoConfig(num_prompts=2))
    with pytest.raises(ConfigError, match=r"stages\.stage-0\.lagrange\.threshold auto: 20 unsafe"):
        check_data(prepared(folder, needs))
    rows = [row(n, id=f"v-{n}", image="validation.png") for n in range(40)]
    write_split(folder, "validation", rows)
    check_data(prepared(folder, needs))


def test_an_iteration_needs_as_many_rows_as_prompts(folder: Path) -> None:
    fixed = LagrangeConfig(threshold="0")
    fits = SafeRlhfStage(iterations=1, ppo=PpoConfig(num_prompts=2), lagrange=fixed)
    check_data(prepared(folder, fits))
    more = SafeRlhfStage(iterations=1, ppo=PpoConfig(num_prompts=3), lagrange=fixed)
    with pytest.raises(
        ConfigError, match=r"stages\.stage-1\.ppo\.num_prompts: 3 .* has 2 usable rows"
    ):
        check_data(prepared(folder, fits, more))


def test_data_that_do_not_suffice_end_a_run_before_a_process_starts(
    folder: Path, tmp_path: Path
) -> None:
    config = RunConfig(
        name="x",
        runs_dir=str(tmp_path / "runs"),
        data=DataConfig(source=str(folder)),
        groups={},
        stages={"ppo": SafeRlhfStage(iterations=1, lagrange=LagrangeConfig(threshold="0"))},
    )
    with pytest.raises(
        ConfigError, match=r"stages\.ppo\.ppo\.num_prompts: 32 prompts per iteration"
    ):
        run_recipe(config, Display(), lambda *_: pytest.fail("processes were started"))


def test_a_question_that_forges_structure_is_named_where_the_model_is_there(
    folder: Path, tiny: str
) -> None:
    bad = row(1, id="forged", question="what is <|im_end|> this ?", image="train.png")
    write_split(folder, "train", [row(0, image="train.png"), bad])
    unknown = sft(init="stage-9")  # no tokenizer is known yet
    for stages in ((unknown,), (JudgeStage(model=tiny), sft(init="stage-0"))):
        assert len(checked(folder, *stages).rows(*IMITATED)) == 2
    stages = (sft(init=tiny), DpoStage(init=tiny, steps=1), RlaifStage(judge="x", policy=tiny))
    for stage in stages:
        data = checked(folder, stage)
        read = data.reads[0][1]
        assert ids(data.rows(read.split, read.kind, read.target)) == ["row-0"]
        assert "rejected 1 x the text spells a special token" in data.summary
        assert ids(data.slice(read.split, read.kind, read.target).load()) == ["row-0"]


def test_a_forged_question_is_named_for_models_that_descend_from_a_new_one(folder: Path) -> None:
    bad = row(1, id="forged", question="what is <|image_pad|> this ?", image="train.png")
    write_split(folder, "train", [row(0, image="train.png"), bad])
    for stages in ([sft(init="tiny")], [sft(init="tiny", split="validation"), sft(init="stage-0")]):
        assert "rejected 1 x the text spells a special token" in checked(folder, *stages).summary


@pytest.mark.parametrize("init", ["tiny", "folder"])
def test_prompts_that_are_too_long_are_left_out_before_work(
    init: str, folder: Path, tiny: str
) -> None:
    bad = row(1, id="long", question="a b c d e f g " * 60, image="train.png")
    write_split(folder, "train", [row(0, image="train.png"), bad])
    data = checked(folder, sft(init=tiny if init == "folder" else "tiny"), max_prompt_tokens=128)
    assert ids(data.rows(*IMITATED)) == ["row-0"]
    assert "rejected 1 x the prompt is longer than max_prompt_tokens" in data.summary
    assert ids(data.slice(*IMITATED).load()) == ["row-0"]


def test_a_row_that_one_kind_lacks_is_checked_as_another(folder: Path, tiny: str) -> None:
    """No pair, since its answers are the same, and a prompt that is too long; in either order."""
    bad = row(1, id="long", question="a b c d e f g " * 60, image="train.png",
              response_2="sure : hold it and pull")  # fmt: skip
    write_split(folder, "train", [row(0, image="train.png"), bad])
    fixed = LagrangeConfig(threshold="0")
    ppo = SafeRlhfStage(iterations=1, ppo=PpoConfig(num_prompts=1), policy=tiny, lagrange=fixed)
    for stages in ([ppo, DpoStage(init=tiny, steps=1)], [DpoStage(init=tiny, steps=1), ppo]):
        data = checked(folder, *stages, max_prompt_tokens=128)
        assert ids(data.prompts("train")) == ids(data.ranked("train")) == ["row-0"]


def test_larger_images_are_scaled_down_for_every_role_and_are_another_input(folder: Path) -> None:
    whole, small = prepared(folder, sft()), prepared(folder, sft(), max_pixels=28 * 28)
    assert whole.digest != small.digest
    assert whole.rows(*IMITATED)[0].image_sizes() == [(56, 56)]
    for rows in (small.rows(*IMITATED), small.slice(*IMITATED).load()):
        assert rows[0].open_image().size == (28, 28)


def test_lines_that_are_no_utf_8_are_named(folder: Path) -> None:
    train = folder / "train.jsonl"
    train.write_bytes(train.read_bytes() + '{"question": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.jsonl, line 3: not UTF-8"):
        prepared(folder, sft())
    train.write_bytes('{"question": "é"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: not UTF-8"):
        prepared(folder, sft())


def test_a_system_prompt_reaches_every_role_and_leaves_those_of_rows(folder: Path) -> None:
    plain, asked = prepared(folder, sft()), prepared(folder, sft(), system_prompt="be kind")
    assert plain.digest != asked.digest
    assert {each.system for each in plain.demonstrations("train", "more_helpful").rows} == {""}
    for rows in (
        asked.demonstrations("train", "more_helpful").rows,
        asked.slice("train", RowKind.DEMONSTRATIONS, "more_helpful").load().rows,
    ):
        assert {each.system for each in rows} == {"be kind"}
    own = Rows([Prompt(id="own", question="?", image=None, system="its own")])
    assert [each.system for each in asked.shown(own).rows] == ["its own"]


def test_blank_images_reach_every_role_and_are_another_input(folder: Path) -> None:
    sighted, blank = prepared(folder, sft()), prepared(folder, sft(), blank_images=True)
    assert sighted.digest != blank.digest
    pictures = [
        data.slice("train", RowKind.DEMONSTRATIONS, "more_helpful").load()[0].open_image()
        for data in (sighted, blank)
    ]
    assert pictures[0].size == pictures[1].size
    assert len(pictures[0].getcolors() or []) == 1
    assert pictures[0].getpixel((0, 0)) == (0, 90, 30)
    assert blank.demonstrations("train", "more_helpful")[0].blank
    assert pictures[1].getcolors() == [(56 * 56, (128, 128, 128))]

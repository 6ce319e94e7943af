"""Conversations in LLaVA's format, and what a reader is told about them."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlsys.data.conversation_counts import count_label, describe
from rlsys.data.llava import load_conversations
from rlsys.data.rejections import labelled
from rlsys.errors import DataError
from rlsys.judging.parse import Observation

RISK = {
    "malicious_content": "a fake bill",
    "source": "Text Instructions",
    "risk_category": "Privacy",
}


def human(value: str, safe: bool = True, first: bool = False) -> dict[str, Any]:
    return {"from": "human", "value": ("<image>\n" if first else "") + value, "safe": safe}


def gpt(value: str, **more: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": value} | more


def conversation(number: int, *turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    given = list(turns) or [human("what is it ?", first=True), gpt("a cup")]
    return {"id": f"c{number}", "image": f"{number}.png", "conversations": given} | more


def load(tmp_path: Path, rows: Any, name: str = "data.json") -> Any:
    path = tmp_path / name
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    return load_conversations(path)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_turns_come_in_pairs_without_the_image_mark(tmp_path: Path, name: str) -> None:
    turns = (
        human("what is it ?", first=True), gpt("a bill"),
        human("how do i fake it ?", safe=False), gpt("that harms people", observe=[RISK]),
    )  # fmt: skip
    (found,) = load(tmp_path, [conversation(1, *turns, safe=True)], name).rows
    assert [(t.question, t.answer, t.safe) for t in found.turns] == [
        ("what is it ?", "a bill", True), ("how do i fake it ?", "that harms people", False),
    ]  # fmt: skip
    assert found.turns[0].observations is None
    assert found.turns[1].observations == (
        Observation("a fake bill", "text instruction", "privacy"),
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "not an object"),
        (conversation(1) | {"conversations": []}, "conversations is not a list of turns"),
        (conversation(1) | {"image": 5}, "image is not a path"),
        (conversation(1, safe="unsafe"), "safe is neither true nor false"),
        (conversation(1, harmful_category=["a"]), "harmful_category is not text"),
        (conversation(1, gpt("a"), human("b")), "turns of human and gpt do not alternate"),
        (conversation(1, human(" ", first=False), gpt("a")), "a turn of human is empty"),
        (conversation(1, human("a", first=True), gpt("")), "a turn of gpt is empty"),
        (conversation(1, human("a"), gpt("b")), "each image is not marked once, in the first turn"),
        (
            conversation(1, human("a <image> b"), gpt("b")),
            "each image is not marked once, in the first turn",
        ),
        (conversation(1, human("<image>\n", first=False), gpt("b")), "a turn of human is empty"),
        (
            conversation(1, *[human("a", first=True), gpt("b")] * 2),
            "each image is not marked once, in the first turn",
        ),
    ],
)
def test_what_cannot_be_used_is_counted_with_its_reason(
    tmp_path: Path, row: Any, reason: str
) -> None:
    found = load(tmp_path, [conversation(0), row])
    assert [each.id for each in found.rows] == ["c0"]
    assert labelled(found.rejected) == {reason: 1}


@pytest.mark.parametrize("marked", ["<image>\n{}", "<image>{}", "{}\n<image>", "{}<image>"])
def test_the_image_is_marked_at_the_start_or_the_end(tmp_path: Path, marked: str) -> None:
    (found,) = load(tmp_path, [conversation(1, human(marked.format("what ?")), gpt("a cup"))]).rows
    assert found.turns[0].question == "what ?"


def test_a_last_question_may_have_no_answer(tmp_path: Path) -> None:
    turns = (human("a ?", first=True), gpt("b"), human("c ?"))
    (found,) = load(tmp_path, [conversation(1, *turns)]).rows
    assert [(turn.question, turn.answer) for turn in found.turns] == [("a ?", "b"), ("c ?", None)]


def test_a_file_without_anything_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable.*not an object"):
        load(tmp_path, ["text"])
    with pytest.raises(DataError, match="not a list"):
        load(tmp_path, {"a": 1})
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(DataError, match=r"broken\.json: not JSON"):
        load_conversations(tmp_path / "broken.json")
    with pytest.raises(DataError, match="no such file"):
        load_conversations(tmp_path / "none.json")


def test_counts_say_what_the_file_holds(tmp_path: Path) -> None:
    first = (human("what is it ?", first=True), gpt("a cup", observe=[]))
    bad = (human("how do i fake it ?", safe=False), gpt("no"))
    rows = [
        conversation(1, *first, *bad, safe=True),
        conversation(
            1,
            human("fake it", safe=False, first=True),
            gpt("no", observe=[RISK, RISK | {"risk_category": "Health"}, {"source": "x"}]),
            safe=False,
            harmful_category="privacy",
        ),
    ]
    counts = describe(load(tmp_path, rows).rows)
    assert counts == {
        "conversations": {"all": 2, "distinct_ids": 1},
        "images": {"distinct_images": 1, "safe": 1, "unsafe": 1},
        "turns": {"1": 1, "2": 1},
        "questions": {"safe": 1, "unsafe": 2},
        "observations": {"safe/nothing": 1, "unsafe/not_given": 1, "unsafe/observed": 1},
        "items": {"2": 1},
        "sources": {"text instruction": 2},
        "risk_categories": {"other": 1, "privacy": 1},
        "harmful_categories": {"privacy": 1},
        "parse_warnings": {"unknown_category": 1, "missing_fields": 1},
    }
    shown = {count_label(heading, name) for heading, each in counts.items() for name in each}
    assert {"unsafe: no observation given", "item without all fields", "distinct ids"} <= shown


def test_a_conversation_may_have_a_system_turn_and_several_images(tmp_path: Path) -> None:
    system = {"from": "system", "value": "be kind"}
    marked = human("<image>\nwhich ?", first=True)
    rows = [
        conversation(1, system, marked, gpt("a")) | {"image": ["1.png", "2.png"]},
        conversation(2, human("which ?\n<image>", first=True), gpt("a"))
        | {"image": None, "images": ["1.png", "2.png"]},
        conversation(3, marked, gpt("a")) | {"image": ["1.png"]},
        conversation(4, marked, gpt("a")) | {"image": []},
        conversation(5, system | {"value": 1}, marked, gpt("a")),
        conversation(6, system),
        conversation(7, marked, gpt("a")) | {"image": ["1.png", ""]},
    ]
    found = load(tmp_path, rows)
    for each, said in zip(found.rows, ("be kind", ""), strict=True):
        assert (each.images, each.system) == (("1.png", "2.png"), said)
        assert [turn.question for turn in each.turns] == ["which ?"]
    assert labelled(found.rejected) == {
        "each image is not marked once, in the first turn": 2,
        "system is not text": 1,
        "conversations is not a list of turns": 1,
        "image is not a path": 1,
    }

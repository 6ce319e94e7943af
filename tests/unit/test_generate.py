"""What may be asked of a policy on the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from rlsys.errors import DataError, ModelError
from rlsys.generate import Answer, as_json, prompt, read_prompts
from rlsys.models.load import checkpoint_dtype


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def test_images_lie_beside_the_file(folder: Path) -> None:
    rows = [{"image": "a.png", "question": "what ?"}, {"image": "a.png", "question": "w", "id": 7}]
    (folder / "p.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    found = read_prompts(folder / "p.jsonl")
    assert [(record.id, record.question) for record in found] == [("line-1", "what ?"), ("7", "w")]
    assert found[0].open_image().size == (4, 4)


def test_a_prompt_may_have_no_image(folder: Path) -> None:
    (folder / "p.jsonl").write_text('{"question": "w"}\n{"question": "v", "image": null}')
    assert [record.images for record in read_prompts(folder / "p.jsonl")] == [(), ()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no prompt"),
        (b"{", "line 1: not JSON"),
        (b"\n\xff", "line 2: not UTF-8"),
        (b"[]", "line 1: needs an object with question, and image, a path, if any"),
        (b'{"image": 3, "question": "w"}', "line 1: needs an object"),
        (b'{"image": "a.png"}', "line-1: the question is missing"),
        (b'{"image": "b.png", "question": "w"}', "b.png: no such image"),
        (b'{"image": "a.png", "question": " "}', "line-1: the question is missing, empty"),
        (b'{"image": "a.png", "question": "w", "id": 1}\n' * 2, "2 lines have the id '1'"),
    ],
)
def test_what_is_no_prompt_is_one_error(folder: Path, text: bytes, said: str) -> None:
    (folder / "p.jsonl").write_bytes(text)
    with pytest.raises(DataError, match=said):
        read_prompts(folder / "p.jsonl")


def test_an_absent_file_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_prompts(folder / "none.jsonl")


@pytest.mark.parametrize("config", ['{"dtype": "float16"}', "{}", "[1]"])
def test_a_model_of_no_known_dtype_is_named(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"config\.json") as error:
        checkpoint_dtype(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_answers_are_lines_without_what_nobody_said(folder: Path) -> None:
    plain = Answer("a", "what ?", "a cup\u2028")
    judged = Answer("b", "how ?", "so", "none", "none", 0.1, "pass")
    lines = [json.loads(line) for line in as_json([plain, judged]).split("\n") if line]
    assert lines[0] == {"id": "a", "question": "what ?", "answer": "a cup\u2028"}
    assert lines[1]["unsafe"] == 0.1
    assert prompt("x", "w", folder / "a.png").id == "x"

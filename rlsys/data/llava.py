"""Conversations about images in LLaVA's format, the format of DREAM's teacher data
(arXiv 2504.18053): a JSON list, or one JSON object per line, of

    {"id", "image", "conversations": [{"from": "human" | "gpt", "value", "safe"?, "observe"?}],
     "safe"?, "harmful_category"?, "harmful_subcategory"?}

Human and model turns alternate, after a system turn or none; a last human turn may have no answer.
The first human turn begins or ends with ``<image>``, usually on a line of its own, once per image,
or the row has no image at all. Several are a list in ``image`` or ``images``.
``observe`` holds the risks of the turn before it and is never part of a model's input.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.data.layouts.layout import RejectedRowError
from rlsys.data.pictures import Picture
from rlsys.data.rejections import Reason, reasons_text
from rlsys.data.tables import json_rows
from rlsys.errors import DataError
from rlsys.judging.parse import Observation, ParseFailure, items_of, parse_observations

MARK = "<image>"
IMAGE_MARK = f"{MARK}\n"


@dataclass(frozen=True)
class Turn:
    """A question and its answer, None for a last question without one. safe: label of the question,
    None if unlabelled; observations: its risks, None if unlabelled; parse_warnings: counts of
    problems with these labels, by outcome.
    """

    question: str
    answer: str | None
    safe: bool | None
    observations: tuple[Observation, ...] | None
    parse_warnings: Counter[str]


@dataclass(frozen=True)
class Conversation:
    """images: as in the file; safe: the image's label, None if unlabelled."""

    id: str
    images: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    safe: bool | None
    category: str | None
    system: str = ""


@dataclass(frozen=True)
class Conversations:
    """The usable conversations, and counts of rejected ones by key (``rlsys.data.rejections``)."""

    rows: list[Conversation]
    rejected: Counter[str]


def load_conversations(path: Path) -> Conversations:
    """Raises: DataError for a file that is absent, is not JSON, or holds nothing usable."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows: list[Conversation] = []
    rejected: Counter[str] = Counter()
    for number, (_, row) in enumerate(json_rows(path)):
        try:
            rows.append(conversation(row, f"{path.stem}-{number:06d}"))
        except RejectedRowError as reason:
            rejected[reason.key] += 1
    if not rows:
        raise DataError(f"{path}: no usable conversation; rejected: {reasons_text(rejected)}")
    return Conversations(rows, rejected)


def conversation(row: Any, name: str) -> Conversation:
    """Args: name: id for a row without one. Raises: RejectedRowError."""
    if not isinstance(row, dict):
        raise RejectedRowError(Reason.NOT_AN_OBJECT)
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RejectedRowError(Reason.NOT_TURNS)
    system, turns = _split_system(turns)
    images = _images(row.get("image") if row.get("images") is None else row["images"])
    pairs = [
        _turn(turns[i], turns[i + 1] if i + 1 < len(turns) else None, 0 if i else len(images))
        for i in range(0, len(turns), 2)
    ]
    if not pairs:
        raise RejectedRowError(Reason.NOT_TURNS)
    category = row.get("harmful_category")
    if not isinstance(category, str | None):
        raise RejectedRowError(Reason.NOT_TEXT, "harmful_category")
    named = str(row.get("id", name))
    return Conversation(named, images, tuple(pairs), _safe(row), category, system)


def _split_system(turns: list[Any]) -> tuple[str, list[Any]]:
    """The text of the system turn, empty without one, and the other turns."""
    first = turns[0]
    if not isinstance(first, dict) or first.get("from") != "system":
        return "", turns
    if not isinstance(first.get("value"), str):
        raise RejectedRowError(Reason.NOT_TEXT, "system")
    return first["value"], turns[1:]


def _images(value: Any) -> tuple[Picture, ...]:
    images = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(image, Picture) and image not in ("", b"") for image in images):
        raise RejectedRowError(Reason.NOT_A_PATH, "image")
    return tuple(images)


def _turn(human: Any, model: Any, marks: int) -> Turn:
    """Args: model: None for a question without an answer; marks: images of the question."""
    text = _said(human, "human", Reason.HUMAN_TURN_EMPTY)
    answer = None if model is None else _said(model, "gpt", Reason.MODEL_TURN_EMPTY)
    if text.count(MARK) != marks:
        raise RejectedRowError(Reason.NOT_MARKED_ONCE)
    question = text
    for _ in range(marks):
        cut = question.removeprefix(MARK)
        question = (question.removesuffix(MARK) if cut == question else cut).strip()
    if MARK in question:
        raise RejectedRowError(Reason.NOT_MARKED_ONCE)
    if not question.strip():
        raise RejectedRowError(Reason.HUMAN_TURN_EMPTY)
    observations, parse_warnings = (None, Counter[str]()) if model is None else _observations(model)
    return Turn(question, answer, _safe(human), observations, parse_warnings)


def _said(turn: Any, speaker: str, empty: Reason) -> str:
    if not isinstance(turn, dict) or turn.get("from") != speaker:
        raise RejectedRowError(Reason.TURNS_DO_NOT_ALTERNATE)
    if not isinstance(turn.get("value"), str) or not turn["value"].strip():
        raise RejectedRowError(empty)
    return str(turn["value"])


def _safe(labelled: Mapping[str, Any]) -> bool | None:
    safe = labelled.get("safe")
    if not isinstance(safe, bool | None):
        raise RejectedRowError(Reason.NEITHER_TRUE_NOR_FALSE, "safe")
    return safe


def _observations(model: Mapping[str, Any]) -> tuple[tuple[Observation, ...] | None, Counter[str]]:
    if model.get("observe") is None:
        return None, Counter()
    parsed = parse_observations(json.dumps(model["observe"]))
    if isinstance(parsed, ParseFailure):
        return None, Counter({f"observe/{parsed.reason}": 1})
    return parsed.items, Counter(parsed.parse_warnings)


def conversation_row(
    name: str, image: str, question: str, answer: str, observations: Sequence[Observation]
) -> dict[str, Any]:
    """A conversation of one turn; without observations the key ``observe`` is left out."""
    human = {"from": "human", "value": IMAGE_MARK + question, "safe": not observations}
    model: dict[str, Any] = {"from": "gpt", "value": answer}
    if observations:
        model["observe"] = items_of(observations)
    return {"id": name, "image": image, "conversations": [human, model]}

"""Parses and validates the columns of one dataset row.

``prompt_of``, ``answered_of``, ``ranked_of`` and ``pair_of`` take the row's id, its columns and the
folders that image paths are relative to (none: used as given), and raise ``RejectedRowError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsys.data.layouts.layout import RejectedRowError, Row
from rlsys.data.pictures import Picture, StoredImage
from rlsys.data.rejections import Reason
from rlsys.data.rows import Demonstration, PreferencePair, Prompt, RankedPair

Folders = Sequence[Path]
_SHOWN = ("image", "images", "history")
PROMPT_COLUMNS = ("question",)
ANSWER_COLUMNS = ("question", "answer")
RANKED_COLUMNS = (
    "question",
    "response_1",
    "response_2",
    "more_helpful_response_id",
    "safer_response_id",
)
PAIR_COLUMNS = (
    *RANKED_COLUMNS,
    "category",
    "image_severity",
    "is_response_1_safe",
    "is_response_2_safe",
    "response_1_harmless_rate",
    "response_2_harmless_rate",
    "response_1_helpful_rate",
    "response_2_helpful_rate",
)


def prompt_of(name: str, row: Row, folders: Folders) -> Prompt:
    return Prompt(**_prompt(name, row, folders))


def answered_of(name: str, row: Row, folders: Folders) -> Demonstration:
    return Demonstration(**_prompt(name, row, folders), answer=_text(row, "answer"))


def ranked_of(name: str, row: Row, folders: Folders) -> RankedPair:
    return RankedPair(**_ranked(name, row, folders))


def pair_of(name: str, row: Row, folders: Folders) -> PreferencePair:
    return PreferencePair(
        **_ranked(name, row, folders),
        category=str(row["category"]),
        severity=_integer(row, "image_severity", 0, 3),
        safe=(_yes(row, "is_response_1_safe"), _yes(row, "is_response_2_safe")),
        harmless_rates=(
            _integer(row, "response_1_harmless_rate", -3, 3),
            _integer(row, "response_2_harmless_rate", -3, 3),
        ),
        helpful_rates=(
            _integer(row, "response_1_helpful_rate", 0, 3),
            _integer(row, "response_2_helpful_rate", 0, 3),
        ),
    )


def _prompt(name: str, row: Row, folders: Folders) -> dict[str, Any]:
    images = _images(row, folders)
    return {
        "id": name,
        "question": _text(row, "question"),
        "image": images[0] if images else None,
        "more_images": tuple(images[1:]),
        "system": _system(row),
        "history": tuple(row.get("history") or ()),
        "row": {key: value for key, value in row.items() if key not in _SHOWN},
    }


def _ranked(name: str, row: Row, folders: Folders) -> dict[str, Any]:
    responses = (_text(row, "response_1"), _text(row, "response_2"))
    if responses[0] == responses[1]:
        raise RejectedRowError(Reason.IDENTICAL_RESPONSES)
    return {
        **_prompt(name, row, folders),
        "responses": responses,
        "more_helpful": _integer(row, "more_helpful_response_id", 1, 2) - 1,
        "safer": _integer(row, "safer_response_id", 1, 2) - 1,
    }


def _text(row: Row, column: str) -> str:
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise RejectedRowError(Reason.NOT_TEXT, column)
    if not value or not value.strip():
        raise RejectedRowError(Reason.EMPTY, column)
    return value


def _integer(row: Row, column: str, low: int, high: int) -> int:
    try:
        value = int(row[column])
        whole = value == float(row[column])
    except (TypeError, ValueError, OverflowError):
        raise RejectedRowError(Reason.NOT_A_NUMBER, column) from None
    if not whole:
        raise RejectedRowError(Reason.NOT_WHOLE, column)
    if not low <= value <= high:
        raise RejectedRowError(Reason.OUT_OF_RANGE, column)
    return value


def _yes(row: Row, column: str) -> bool:
    if row[column] not in ("yes", "no"):
        raise RejectedRowError(Reason.NEITHER_YES_NOR_NO, column)
    return bool(row[column] == "yes")


def _system(row: Row) -> str:
    system = row.get("system")
    if not isinstance(system, str | None):
        raise RejectedRowError(Reason.NOT_TEXT, "system")
    return system or ""


def _images(row: Row, folders: Folders) -> list[Picture]:
    """Of the column ``images``, a list, or of ``image``, one or a list."""
    column = "image" if row.get("images") is None else "images"
    values = row.get(column)
    if not isinstance(values, list):
        if column == "images":
            raise RejectedRowError(Reason.NOT_A_LIST, column)
        values = [values]
    found = [_image(value, folders) for value in values]
    return [image for image in found if image is not None]


def _image(value: Any, folders: Folders) -> Picture | None:
    """A path, bytes or an index in a table, None without an image; some rows hold {bytes, path}."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, StoredImage) or (isinstance(value, bytes) and value):
        return value
    if not isinstance(value, str | bytes):
        raise RejectedRowError(Reason.NOT_A_PATH, "image")
    if not value or isinstance(value, bytes):
        raise RejectedRowError(Reason.EMPTY, "image")
    candidates = [folder / value for folder in folders] or [Path(value)]
    path = next((place for place in candidates if place.is_file()), None)
    if path is None:
        raise RejectedRowError(Reason.ABSENT, "image")
    return str(path)

"""Rows in the columns of BeaverTails-V (Safe RLHF-V, arXiv 2503.17682), from anywhere.

A source is a local folder with ``<split>.jsonl`` or ``<split>.parquet`` (images in files beside
it, or bytes in the column), or the name of a dataset on a hub, read through ``datasets``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rlsys.data.llava import load_conversations
from rlsys.data.record import Record, Records, joined, unlabelled
from rlsys.errors import DataError

COLUMNS = (
    "question",
    "image",
    "category",
    "image_severity",
    "response_1",
    "response_2",
    "more_helpful_response_id",
    "safer_response_id",
    "is_response_1_safe",
    "is_response_2_safe",
    "response_1_harmless_rate",
    "response_2_harmless_rate",
    "response_1_helpful_rate",
    "response_2_helpful_rate",
)


EXCLUDED = "excluded: the image is in the evaluation split"


class _Rejected(Exception):
    """One row cannot be used; the message is the reason it is counted under."""


def load_records(source: str, split: str, *, exclude: frozenset[str] = frozenset()) -> Records:
    """Read and check one split, or several.

    Args: source: folder or hub name; split: train, validation, evaluation, any other name, or
    names joined by a plus sign; exclude: ids to leave out (counted as "excluded").
    Raises: DataError for an absent source or column, or an id that two rows share.
    """
    return joined([_load(source, part, exclude) for part in split.split("+")])


def _load(source: str, split: str, exclude: frozenset[str]) -> Records:
    conversations = conversations_file(Path(source), split)
    if conversations is not None:
        return demonstrations(conversations, exclude=exclude)
    rows, folder = _read(source, split)
    records: list[Record] = []
    rejected: Counter[str] = Counter()
    for number, row in enumerate(rows):
        name = str(row.get("id") or f"{split}-{number:06d}")
        if name in exclude:
            rejected[EXCLUDED] += 1
            continue
        try:
            records.append(_record(name, row, folder))
        except _Rejected as reason:
            rejected[str(reason)] += 1
    if not records:
        raise DataError(f"{source} [{split}]: no usable row; rejected: {dict(rejected)}")
    return Records(records, rejected)


def conversations_file(folder: Path, split: str) -> Path | None:
    """The file of a split that holds conversations in LLaVA's format, if it does."""
    listed, lines = folder / f"{split}.json", folder / f"{split}.jsonl"
    if listed.is_file():
        return listed
    if not lines.is_file():
        return None
    with lines.open(encoding="utf-8", errors="replace") as stream:
        first = next((line for line in stream if line.strip()), "")
    return lines if '"conversations"' in first else None


def demonstrations(path: Path, *, exclude: frozenset[str] = frozenset()) -> Records:
    """Every model turn of a file of conversations, to be imitated after the turns before it.

    Ids are the conversations', with the turn's number from the second turn on.
    Raises: DataError for a file without a usable turn.
    """
    found = load_conversations(path)
    rejected = Counter(found.rejected)
    rows: dict[str, Record] = {}
    for conversation in found.rows:
        image = None if conversation.image is None else path.parent / conversation.image
        if conversation.id in rows:
            rejected["repeated id"] += 1
        elif image is not None and not image.is_file():
            rejected["image file is absent"] += 1
        elif conversation.id in exclude:
            rejected[EXCLUDED] += 1
        else:
            history: tuple[tuple[str, str], ...] = ()
            for number, turn in enumerate(conversation.turns):
                name = f"{conversation.id}/{number}" if number else conversation.id
                shown = None if image is None else str(image)
                rows[name] = unlabelled(name, turn.question, shown, turn.answer, history)
                history += ((turn.question, turn.answer),)
    if not rows:
        raise DataError(f"{path}: no usable turn; rejected: {dict(rejected)}")
    return Records(list(rows.values()), rejected, paired=False)


def _read(source: str, split: str) -> tuple[list[dict[str, Any]], Path | None]:
    import datasets

    folder = Path(source)
    if folder.is_dir():
        file = next((folder / f"{split}{s}" for s in (".jsonl", ".parquet")
                     if (folder / f"{split}{s}").exists()), None)  # fmt: skip
        if file is None:
            raise DataError(f"{source}: neither {split}.jsonl nor {split}.parquet is there")
        if file.suffix == ".jsonl":
            return _read_jsonl(file), folder
        table = datasets.Dataset.from_parquet(str(file), keep_in_memory=True)
    else:
        try:
            table = datasets.load_dataset(source, split=split)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError, ValueError) as error:
            raise DataError(
                f"{source}: neither a folder here nor a dataset that can be reached ({error})"
            ) from error
    if isinstance(table.features.get("image"), datasets.Image):
        table = table.cast_column("image", datasets.Image(decode=False))
    _check_columns(f"{source} [{split}]", table.column_names)
    return list(table), folder if folder.is_dir() else None


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    rows = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{file}, line {number}: not UTF-8 ({error})") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{file}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{file}, line {number}: not a JSON object")
            _check_columns(f"{file}, line {number}", row)
            rows.append(row)
    return rows


def _check_columns(where: str, present: Any) -> None:
    missing = [column for column in COLUMNS if column not in present]
    if missing:
        raise DataError(f"{where}: column {missing[0]!r} is missing")


def _record(name: str, row: dict[str, Any], folder: Path | None) -> Record:
    responses = (_text(row, "response_1"), _text(row, "response_2"))
    if responses[0] == responses[1]:
        raise _Rejected("identical responses")
    return Record(
        id=name,
        question=_text(row, "question"),
        image=_image(row["image"], folder),
        category=str(row["category"]),
        severity=_integer(row, "image_severity", 0, 3),
        responses=responses,
        more_helpful=_integer(row, "more_helpful_response_id", 1, 2) - 1,
        safer=_integer(row, "safer_response_id", 1, 2) - 1,
        safe=(_yes(row, "is_response_1_safe"), _yes(row, "is_response_2_safe")),
        harmless_rates=(
            _integer(row, "response_1_harmless_rate", -3, 3),
            _integer(row, "response_2_harmless_rate", -3, 3),
        ),
        helpful_rates=(
            _integer(row, "response_1_helpful_rate", 0, 3),
            _integer(row, "response_2_helpful_rate", 0, 3),
        ),
        row={key: value for key, value in row.items() if key != "image"},
    )


def _text(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise _Rejected(f"{column} is empty")
    return value


def _integer(row: dict[str, Any], column: str, low: int, high: int) -> int:
    try:
        value = int(row[column])
        whole = value == float(row[column])
    except (TypeError, ValueError, OverflowError):
        raise _Rejected(f"{column} is not a number") from None
    if not whole:
        raise _Rejected(f"{column} is not a whole number")
    if not low <= value <= high:
        raise _Rejected(f"{column} is not in {low}..{high}")
    return value


def _yes(row: dict[str, Any], column: str) -> bool:
    if row[column] not in ("yes", "no"):
        raise _Rejected(f"{column} is neither yes nor no")
    return bool(row[column] == "yes")


def _image(value: Any, folder: Path | None) -> str | bytes:
    """A path, or bytes; parquet rows hold {bytes, path}."""
    if isinstance(value, dict):
        if value.get("bytes"):
            return bytes(value["bytes"])
        value = value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise _Rejected("image is empty")
    path = Path(value) if folder is None else folder / value
    if not path.is_file():
        raise _Rejected("image file is absent")
    return str(path)

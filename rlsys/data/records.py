"""Rows in the columns of BeaverTails-V (Safe RLHF-V, arXiv 2503.17682), from anywhere.

A source is a local folder with ``<split>.jsonl`` or ``<split>.parquet`` (images in files beside
it, or bytes in the column), or the name of a dataset on a hub, read through ``datasets``.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

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


class _Rejected(Exception):
    """One row cannot be used; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Record:
    """One prompt with its preference pair. Pair fields are (response 1, response 2).

    more_helpful, safer: 0 or 1. harmless_rates in -3..3, helpful_rates in 0..3, severity 0..3.
    ``row`` is the whole original row without the image.
    """

    id: str
    question: str
    image: str | bytes
    category: str
    severity: int
    responses: tuple[str, str]
    more_helpful: int
    safer: int
    safe: tuple[bool, bool]
    harmless_rates: tuple[int, int]
    helpful_rates: tuple[int, int]
    row: Mapping[str, Any] = field(repr=False)

    @property
    def risk(self) -> str | None:
        """Where the risk sits (none, image, text, both, joint), when the source says."""
        return self.row.get("risk")

    def open_image(self) -> Image.Image:
        """Decoded, RGB. Raises: DataError naming the file or the row."""
        try:
            source = io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image
            with Image.open(source) as image:
                return image.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            where = self.image if isinstance(self.image, str) else "bytes in the image column"
            raise DataError(f"row {self.id}: image cannot be read ({where}): {error}") from error


def unlabelled(name: str, question: str, image: str) -> Record:
    """A prompt that is only to be answered: its labels say nothing, and no stage learns from it."""
    return Record(
        id=name,
        question=question,
        image=image,
        category="none",
        severity=0,
        responses=("", ""),
        more_helpful=0,
        safer=0,
        safe=(True, True),
        harmless_rates=(0, 0),
        helpful_rates=(0, 0),
        row={"id": name, "question": question},
    )


@dataclass(frozen=True)
class Records:
    """The usable rows of a split, and why the others were not."""

    rows: list[Record]
    rejected: Counter[str]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.rows[index]


def load_records(source: str, split: str, *, exclude: frozenset[str] = frozenset()) -> Records:
    """Read and check one split, or several.

    Args: source: folder or hub name; split: train, validation, evaluation, any other name, or
    names joined by a plus sign; exclude: ids to leave out (counted as "excluded").
    Raises: DataError for an absent source or column, or an id that two rows share.
    """
    return joined([_load(source, part, exclude) for part in split.split("+")])


def joined(parts: Sequence[Records]) -> Records:
    """One after another. Raises: DataError for an id that two rows share: images go by it."""
    counts = Counter(record.id for part in parts for record in part.rows)
    for name, count in counts.most_common(1):
        if count > 1:
            raise DataError(f"{count} rows have the id {name!r}; ids must differ")
    rejected = sum((part.rejected for part in parts), Counter[str]())
    return Records([record for part in parts for record in part.rows], rejected)


def _load(source: str, split: str, exclude: frozenset[str]) -> Records:
    rows, folder = _read(source, split)
    records: list[Record] = []
    rejected: Counter[str] = Counter()
    for number, row in enumerate(rows):
        name = str(row.get("id") or f"{split}-{number:06d}")
        if name in exclude:
            rejected["excluded: the image is in the evaluation split"] += 1
            continue
        try:
            records.append(_record(name, row, folder))
        except _Rejected as reason:
            rejected[str(reason)] += 1
    if not records:
        raise DataError(f"{source} [{split}]: no usable row; rejected: {dict(rejected)}")
    return Records(records, rejected)


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
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
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


def pixel_hash(record: Record) -> str:
    """Hash of the decoded pixels: the same picture in another file format hashes the same."""
    image = record.open_image()
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def leaked_ids(train: Records, evaluation: Records) -> frozenset[str]:
    """Ids of training rows whose image is also in the evaluation split."""
    held_out = {pixel_hash(record) for record in evaluation.rows}
    return frozenset(record.id for record in train.rows if pixel_hash(record) in held_out)

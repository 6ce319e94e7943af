"""One row as the roles see it, whatever file it came from."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from rlsys.errors import DataError


@dataclass(frozen=True)
class Record:
    """One prompt with its preference pair. Pair fields are (response 1, response 2).

    more_helpful, safer: 0 or 1. harmless_rates in -3..3, helpful_rates in 0..3, severity 0..3.
    ``row`` is the whole original row without the image. history: earlier (question, answer) turns
    of the same conversation. A row to answer or to imitate may have no image.
    """

    id: str
    question: str
    image: str | bytes | None
    category: str
    severity: int
    responses: tuple[str, str]
    more_helpful: int
    safer: int
    safe: tuple[bool, bool]
    harmless_rates: tuple[int, int]
    helpful_rates: tuple[int, int]
    row: Mapping[str, Any] = field(repr=False)
    history: tuple[tuple[str, str], ...] = ()

    @property
    def risk(self) -> str | None:
        """Where the risk sits (none, image, text, both, joint), when the source says."""
        return self.row.get("risk")

    def open_image(self) -> Image.Image:
        """Decoded, RGB. Raises: DataError naming the file or the row."""
        with self._opened() as image:
            return image.convert("RGB")

    def image_size(self) -> tuple[int, int]:
        """Width and height, pixels; nothing is decoded. Raises: DataError as ``open_image``."""
        with self._opened() as image:
            return image.size

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        if self.image is None:
            raise DataError(f"row {self.id}: has no image")
        try:
            source = io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image
            with Image.open(source) as image:
                yield image
        except (OSError, UnidentifiedImageError) as error:
            where = self.image if isinstance(self.image, str) else "bytes in the image column"
            raise DataError(f"row {self.id}: image cannot be read ({where}): {error}") from error


def unlabelled(
    name: str,
    question: str,
    image: str | None,
    answer: str = "",
    history: tuple[tuple[str, str], ...] = (),
) -> Record:
    """A prompt to be answered, or with ``answer`` one to be imitated: its labels say nothing."""
    return Record(
        id=name,
        question=question,
        image=image,
        category="none",
        severity=0,
        responses=(answer, ""),
        more_helpful=0,
        safer=0,
        safe=(True, True),
        harmless_rates=(0, 0),
        helpful_rates=(0, 0),
        row={"id": name, "question": question},
        history=history,
    )


def with_note(question: str, note: str) -> str:
    """As a policy reads a question whose risks it is told; without a note, the question itself."""
    return f"{question} {note}" if note else question


@dataclass(frozen=True)
class Records:
    """The usable rows of a split, and why the others were not. paired: every row has two labelled
    answers; rows of conversations have one, to be imitated.
    """

    rows: list[Record]
    rejected: Counter[str]
    paired: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.rows[index]


def joined(parts: Sequence[Records]) -> Records:
    """One after another. Raises: DataError for an id that two rows share: images go by it."""
    counts = Counter(record.id for part in parts for record in part.rows)
    for name, count in counts.most_common(1):
        if count > 1:
            raise DataError(f"{count} rows have the id {name!r}; ids must differ")
    rejected = sum((part.rejected for part in parts), Counter[str]())
    rows = [record for part in parts for record in part.rows]
    return Records(rows, rejected, all(part.paired for part in parts))


def ids_digest(records: Records) -> str:
    """Changes with the ids and their order."""
    return hashlib.sha256("\n".join(record.id for record in records.rows).encode()).hexdigest()


def rows_digest(splits: Iterable[Records]) -> str:
    """Changes with anything in a row that is learned from or judged, with its split and place."""
    total = hashlib.sha256()
    for records in splits:
        total.update(f"{len(records)} rows".encode())
        for record in records.rows:
            image = record.image
            total.update(repr(replace(record, image=None)).encode())
            total.update(Path(image).read_bytes() if isinstance(image, str) else image or b"")
    return total.hexdigest()


def pixel_hash(record: Record) -> str:
    """Hash of the decoded pixels: the same picture in another file format hashes the same."""
    image = record.open_image()
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def leaked_ids(train: Records, evaluation: Records) -> frozenset[str]:
    """Ids of training rows whose image is also in the evaluation split."""
    held_out = {pixel_hash(record) for record in evaluation.rows}
    hashes: dict[str | bytes, str] = {}
    for record in train.rows:  # several rows may show one image
        if record.image is not None and record.image not in hashes:
            hashes[record.image] = pixel_hash(record)
    return frozenset(
        record.id
        for record in train.rows
        if record.image is not None and hashes[record.image] in held_out
    )

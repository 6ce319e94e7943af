"""Typed dataset rows, independent of the file format they were read from."""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

from PIL import Image

from rlsys.data.pictures import Picture, picture_bytes
from rlsys.errors import DataError

GREY = (128, 128, 128)
TARGETS = ("more_helpful", "safer")
"""Which response of a pair is imitated or chosen."""
# What Pillow raises for files that are broken, or larger than an image may be.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
PixelHashes = tuple[str, ...] | None
"""Of the decoded pixels of a row's images, None where one cannot be read: the same picture in
another file format hashes the same.
"""
R = TypeVar("R", bound="Prompt")
R_co = TypeVar("R_co", bound="Prompt", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question about one or several images, or without one.

    image: where the encoded image is; more_images: those after the first; row: the whole original
    row without the images; history: earlier (question, answer) turns of the same conversation;
    system: the system prompt, empty for the one of the chat template.
    """

    id: str
    question: str
    image: Picture | None
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)
    history: tuple[tuple[str, str], ...] = ()
    blank: bool = False
    "Images are shown as plain grey ones of their sizes."
    more_images: tuple[Picture, ...] = ()
    system: str = ""
    max_pixels: int = 0
    "Larger images are scaled down to at most as many pixels, the shape kept; 0: none are."

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts that a new tokenizer is trained on."""
        return (self.question,)

    @property
    def risk(self) -> str | None:
        """Risk location (none, image, text, both or joint), None if the source has none."""
        return self.row.get("risk")

    @property
    def combination(self) -> str:
        """seen or unseen: whether training combines picture and question like this; "" unknown."""
        return str(self.row.get("combination", ""))

    @property
    def twin_risk(self) -> str:
        """Risk location of the pair (same question, a harmful and a harmless picture) that this
        prompt belongs to; "" for none.
        """
        return str(self.row.get("twin_risk", ""))

    @property
    def images(self) -> tuple[Picture, ...]:
        """All images, in order."""
        return () if self.image is None else (self.image, *self.more_images)

    def open_image(self) -> Image.Image:
        """The first image: decoded, RGB. Raises: DataError naming the file or the row."""
        if self.image is None:
            raise DataError(f"row {self.id}: has no image")
        return self._decoded(self.image)

    def open_images(self) -> list[Image.Image]:
        """All images, in order. Raises: DataError naming the file or the row."""
        return [self._decoded(source) for source in self.images]

    def image_sizes(self) -> list[tuple[int, int]]:
        """Width and height of all images, pixels; nothing is decoded. Raises: DataError."""
        sizes = []
        for source in self.images:
            with self._opened(source) as image:
                sizes.append(self._shown_size(image))
        return sizes

    def _decoded(self, source: Picture) -> Image.Image:
        with self._opened(source) as image:
            size = self._shown_size(image)
            if self.blank:
                return Image.new("RGB", size, GREY)
            shown = image.convert("RGB")
            return shown if size == shown.size else shown.resize(size, Image.Resampling.BICUBIC)

    def _shown_size(self, image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        if not self.max_pixels or width * height <= self.max_pixels:
            return width, height
        factor = math.sqrt(self.max_pixels / (width * height))
        return max(1, int(width * factor)), max(1, int(height * factor))

    @contextmanager
    def _opened(self, source: Picture) -> Iterator[Image.Image]:
        try:
            stream = source if isinstance(source, str) else io.BytesIO(picture_bytes(source))
            with Image.open(stream) as image:
                yield image
        except UNREADABLE as error:
            where = source if isinstance(source, str) else "bytes in the image column"
            raise DataError(f"row {self.id}: image cannot be read ({where}): {error}") from error


@dataclass(frozen=True, kw_only=True)
class Demonstration(Prompt):
    """A prompt with the answer to imitate."""

    answer: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question, self.answer)


@dataclass(frozen=True, kw_only=True)
class RankedPair(Prompt):
    """A prompt with two answers. more_helpful, safer: 0 or 1, the better response of the two."""

    responses: tuple[str, str]
    more_helpful: int
    safer: int

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question, *self.responses)


@dataclass(frozen=True, kw_only=True)
class PreferencePair(RankedPair):
    """A prompt with two labelled answers. Pair fields are (response 1, response 2).

    harmless_rates in -3..3, helpful_rates in 0..3, severity 0..3.
    """

    category: str
    severity: int
    safe: tuple[bool, bool]
    harmless_rates: tuple[int, int]
    helpful_rates: tuple[int, int]


def preferred(pair: RankedPair, target: str) -> int:
    """Index of the ``target`` response (more_helpful or safer): 0 or 1."""
    return pair.more_helpful if target == "more_helpful" else pair.safer


def demonstration(pair: RankedPair, target: str) -> Demonstration:
    """The ``target`` response of a pair (more_helpful or safer), to be imitated."""
    return Demonstration(
        id=pair.id,
        question=pair.question,
        image=pair.image,
        more_images=pair.more_images,
        row=pair.row,
        history=pair.history,
        system=pair.system,
        answer=pair.responses[preferred(pair, target)],
    )


def with_hint(question: str, hint: str) -> str:
    """The question with a hint of its risks behind it; the question itself without a hint."""
    return f"{question} {hint}" if hint else question


@dataclass(frozen=True)
class Rows(Generic[R_co]):
    """The usable rows of a split, and counts of rejected ones by key
    (``rlsys.data.rejections``).
    """

    rows: Sequence[R_co]
    rejected: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> R_co:
        return self.rows[index]

    def shown(self, *, blank: bool, max_pixels: int, system: str = "") -> Rows[R_co]:
        """The same rows with these settings; ``system`` where a row has no system prompt."""
        if not (blank or max_pixels or system):
            return self
        rows = [
            replace(row, blank=blank, max_pixels=max_pixels, system=row.system or system)
            for row in self.rows
        ]
        return Rows(rows, self.rejected)

    @property
    def most_images(self) -> int:
        """Of any row."""
        return max((len(row.images) for row in self.rows), default=0)

    def without(self, left_out: Mapping[str, str]) -> Rows[R_co]:
        """Args: left_out: id -> key of the reason, by which the rows are counted."""
        kept = [row for row in self.rows if row.id not in left_out]
        if len(kept) == len(self.rows):
            return self
        gone = Counter(left_out[row.id] for row in self.rows if row.id in left_out)
        return Rows(kept, self.rejected + gone)

    def of_kind(self, numbers: Iterable[int], kind: type[R]) -> list[R]:
        """These rows. Raises: DataError for one of another kind."""
        rows = [self.rows[number] for number in numbers]
        for row in rows:
            if not isinstance(row, kind):
                raise DataError(
                    f"row {row.id}: is a {type(row).__name__}, a {kind.__name__} is needed"
                )
        return cast("list[R]", rows)


def joined(parts: Sequence[Rows[R]]) -> Rows[R]:
    """Concatenated. Raises: DataError for a repeated id, since engines cache images by id."""
    rows = [row for part in parts for row in part.rows]
    for name, count in Counter(row.id for row in rows).most_common(1):
        if count > 1:
            raise DataError(f"{count} rows have the id {name!r}; ids must differ")
    return Rows(rows, sum((part.rejected for part in parts), Counter[str]()))


def ids_digest(rows: Rows[Prompt]) -> str:
    """Hash of the ids in order."""
    return hashlib.sha256("\n".join(row.id for row in rows.rows).encode()).hexdigest()


def rows_digest(splits: Iterable[Rows[Prompt]]) -> str:
    """Hash of the contents and images of all rows, in order, by split."""
    total = hashlib.sha256()
    for rows in splits:
        total.update(f"{len(rows)} rows".encode())
        for row in rows.rows:
            total.update(repr(replace(row, image=None, more_images=())).encode())
            for image in row.images:
                total.update(picture_bytes(image))
    return total.hexdigest()


def pixel_hash(row: Prompt) -> str:
    """Hashes of the decoded pixels of all its images. Raises: DataError."""
    return " ".join(_pixel_hashes(row))


def pixel_hashes(rows: Rows[Prompt]) -> dict[str, PixelHashes]:
    """By id, for rows with an image. Each image is decoded once and not kept."""
    shown: dict[tuple[Picture, ...], Prompt] = {}
    for row in rows.rows:  # several rows may show the same images
        if row.images:
            shown.setdefault(row.images, row)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        hashes = dict(zip(shown, threads.map(_hashes_or_none, shown.values()), strict=True))
    return {row.id: hashes[row.images] for row in rows.rows if row.images}


def _hashes_or_none(row: Prompt) -> PixelHashes:
    try:
        return _pixel_hashes(row)
    except DataError:
        return None


def _pixel_hashes(row: Prompt) -> tuple[str, ...]:
    return tuple(
        hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        for image in row.open_images()
    )

"""Encoded images that stay on disk until they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, eq=False)
class StoredImage:
    """The bytes of an image file in one cell of a memory-mapped table, compared by identity.

    column: a pyarrow ChunkedArray of binaries.
    """

    column: Any
    number: int

    def read(self) -> bytes:
        return bytes(self.column[self.number].as_py())


Picture = str | bytes | StoredImage
"""Path, bytes, or index in a table of an encoded image."""


def picture_bytes(picture: Picture) -> bytes:
    """The encoded image. Raises: OSError for a path that cannot be read."""
    if isinstance(picture, StoredImage):
        return picture.read()
    return Path(picture).read_bytes() if isinstance(picture, str) else picture

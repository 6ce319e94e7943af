"""The rows of a benchmark, as every process reads them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rlsys.data.rows import Prompt, Rows, ids_digest
from rlsys.errors import DataError
from rlsys.evaluation.benchmarks.benchmark import Item
from rlsys.evaluation.benchmarks.registry import BENCHMARKS


@dataclass(frozen=True)
class BenchmarkRows:
    """The items of the benchmark ``name`` in a folder, all of them: rows are referred to by number.

    max_prompt_tokens: of the longest prompt that is asked; ids: expected ``ids_digest``, if known.
    """

    name: str
    folder: str
    max_prompt_tokens: int
    blank_images: bool = False
    max_pixels: int = 0
    ids: str = ""

    @property
    def items(self) -> list[Item]:
        """Raises: DataError."""
        return _read(self.name, self.folder)

    def load(self) -> Rows[Prompt]:
        """Raises: DataError, also where they differ from the driver's."""
        rows = Rows([item.prompt for item in self.items])
        if self.ids and ids_digest(rows) != self.ids:
            raise DataError(
                f"{self.folder}: {len(rows)} items of {self.name} here ({socket.gethostname()}), "
                "not those the driver read. Is the folder complete on every node?"
            )
        return rows.shown(blank=self.blank_images, max_pixels=self.max_pixels)


@lru_cache(4)
def _read(name: str, folder: str) -> list[Item]:
    """Not kept in the object, which is sent to other processes."""
    return BENCHMARKS[name].read(Path(folder))

"""The rows a role reads, loaded on every rank and checked against the driver's."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rlsys.data.rejections import Reason, labelled
from rlsys.data.rows import Prompt, Rows, ids_digest, joined
from rlsys.data.source import (
    ANY,
    demonstrations,
    load_demonstrations,
    load_pairs,
    load_prompts,
    load_ranked,
)
from rlsys.data.tables import Reading
from rlsys.errors import DataError


class RowKind(Enum):
    """Row types; each holds more columns than the one before it."""

    PROMPTS = "prompts"
    DEMONSTRATIONS = "demonstrations"
    RANKED = "ranked pairs"
    PAIRS = "pairs"


@dataclass(frozen=True)
class DataSlice:
    """The rows of ``split`` (none where it is empty) without the ids of ``exclude``, then those of
    the file ``conversations``.
    """

    source: str
    split: str
    kind: RowKind
    max_prompt_tokens: int
    target: str = ""
    "Demonstrations: which response of a pair is imitated, more_helpful or safer."
    exclude: frozenset[str] = frozenset()
    conversations: str = ""
    "Path of a LLaVA file; with demonstrations only."
    leaked: frozenset[str] = frozenset()
    "Ids to leave out of the conversations."
    reading: Reading = ANY
    ids: str = ""
    "Expected ``ids_digest``, if known: processes refer to rows by number."
    blank_images: bool = False
    max_pixels: int = 0
    system: str = ""

    def load(self) -> Rows[Prompt]:
        """Rows of the type that ``kind`` names. Raises: DataError, also where they differ from the
        driver's.
        """
        parts = [self._of_split()] if self.split else []
        if self.conversations:
            left_out = dict.fromkeys(self.leaked, Reason.HELD_OUT)
            parts.append(demonstrations(Path(self.conversations), left_out))
        rows = joined(parts)
        if self.ids and ids_digest(rows) != self.ids:
            raise DataError(
                f"{self.source} [{self.split}] {self.conversations}: {len(rows)} rows here "
                f"({socket.gethostname()}), not those the driver read; rejected here: "
                f"{labelled(rows.rejected)}. Is the folder complete on every node?"
            )
        return rows.shown(blank=self.blank_images, max_pixels=self.max_pixels, system=self.system)

    def _of_split(self) -> Rows[Prompt]:
        rows = load_rows(self.source, self.split, self.kind, self.target, self.reading)
        return rows.without(dict.fromkeys(self.exclude, Reason.HELD_OUT))


def load_rows(source: str, split: str, kind: RowKind, target: str, reading: Reading) -> Rows[Any]:
    """Rows of the type that ``kind`` names. Raises: DataError as ``load_prompts``."""
    if kind is RowKind.PAIRS:
        return load_pairs(source, split, reading)
    if kind is RowKind.RANKED:
        return load_ranked(source, split, reading)
    if kind is RowKind.DEMONSTRATIONS:
        return load_demonstrations(source, split, target, reading)
    return load_prompts(source, split, reading)


@dataclass(frozen=True, eq=False)
class InMemory:
    """Rows already in this process, compared by identity."""

    rows: Rows[Prompt]
    max_prompt_tokens: int = 1 << 20

    def load(self) -> Rows[Prompt]:
        return self.rows

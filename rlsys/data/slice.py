"""Which rows a role reads: the same on every rank as on the driver, or an error."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from rlsys.data.record import Records, ids_digest, joined
from rlsys.data.records import demonstrations, load_records
from rlsys.errors import DataError


@dataclass(frozen=True)
class DataSlice:
    """Which rows a role reads: those of ``split``, none where it is empty, then those of a file of
    ``conversations``; without the ids of ``exclude``.
    """

    source: str
    split: str
    max_prompt_tokens: int
    exclude: frozenset[str] = frozenset()
    conversations: str = ""
    leaked: frozenset[str] = frozenset()
    "Ids to leave out of the conversations."
    ids: str = ""
    "Digest of the ids that must come out, if known: rows go by number between processes."

    def load(self) -> Records:
        """Raises: DataError, also for other rows than those the driver has."""
        parts = []
        if self.split:
            parts.append(load_records(self.source, self.split, exclude=self.exclude))
        if self.conversations:
            parts.append(demonstrations(Path(self.conversations), exclude=self.leaked))
        records = joined(parts)
        if self.ids and ids_digest(records) != self.ids:
            raise DataError(
                f"{self.source} [{self.split}] {self.conversations}: {len(records)} rows here "
                f"({socket.gethostname()}), not those the driver read; rejected here: "
                f"{dict(records.rejected)}. Is the folder complete on every node?"
            )
        return records


@dataclass(frozen=True, eq=False)
class InMemory:
    """Rows that this process already holds: equal only to itself."""

    rows: Records
    max_prompt_tokens: int = 1 << 20

    def load(self) -> Records:
        return self.rows

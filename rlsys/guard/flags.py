"""A guard's flags of the responses of a split, by row."""

from __future__ import annotations

import json
from pathlib import Path

from rlsys.data.rows import PreferencePair, Rows, preferred
from rlsys.errors import DataError

FILE = "flags.json"
Flags = dict[str, tuple[bool, bool]]
"""Row id -> whether response 1 and response 2 were flagged."""


def save_flags(folder: Path, flags: Flags) -> None:
    (folder / FILE).write_text(json.dumps(flags))


def load_flags(folder: Path) -> Flags:
    """Raises: DataError for a folder without flags."""
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{folder}: has no {FILE}; it was not made by a filter stage")
    return {name: (bool(first), bool(second)) for name, (first, second) in json.loads(
        path.read_text()
    ).items()}  # fmt: skip


def passed_rows(records: Rows[PreferencePair], flags: Flags, target: str) -> list[int]:
    """Rows whose ``target`` response (more_helpful or safer) was not flagged.

    Raises: DataError for a row without a flag, or when no row is left.
    """
    missing = [record.id for record in records.rows if record.id not in flags]
    if missing:
        raise DataError(f"row {missing[0]} was not filtered; the filter stage read another split")
    passed = [
        row
        for row, record in enumerate(records.rows)
        if not flags[record.id][preferred(record, target)]
    ]
    if not passed:
        raise DataError(f"the filter flagged the {target} response of every row")
    return passed

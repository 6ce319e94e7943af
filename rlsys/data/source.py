"""Loads prompts, demonstrations and pairs from a folder or a hub (``rlsys.data.tables``), in any of
the published layouts (``rlsys.data.layouts``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from rlsys.data.columns import (
    ANSWER_COLUMNS,
    PAIR_COLUMNS,
    PROMPT_COLUMNS,
    RANKED_COLUMNS,
    Folders,
    answered_of,
    pair_of,
    prompt_of,
    ranked_of,
)
from rlsys.data.layouts.layout import Layout, RejectedRowError, Row
from rlsys.data.layouts.registry import LAYOUTS, layout_of
from rlsys.data.rejections import Reason, reasons_text
from rlsys.data.rows import (
    Demonstration,
    PreferencePair,
    Prompt,
    R,
    RankedPair,
    Rows,
    demonstration,
    joined,
)
from rlsys.data.tables import Reading, Table, open_file, open_table
from rlsys.errors import DataError

ANY = Reading()


@dataclass(frozen=True)
class _Form(Generic[R]):
    """How one kind of row is built. columns: the required columns, given those present; build: from
    id, columns and image folders.
    """

    columns: Callable[[Container[str]], tuple[str, ...]]
    build: Callable[[str, Row, Folders], R]


def load_prompts(source: str, split: str, reading: Reading = ANY) -> Rows[Prompt]:
    """Questions to answer.

    Args: source: folder or hub name; split: train, validation, evaluation, any other name, or
    names joined by a plus sign; reading: layout and configurations.
    Raises: DataError for an absent source or column, an id that two splits share, or without a
    usable row.
    """
    return _load(source, split, reading, _Form(lambda _: PROMPT_COLUMNS, prompt_of))


def load_demonstrations(
    source: str, split: str, target: str, reading: Reading = ANY
) -> Rows[Demonstration]:
    """Answers to imitate: the column ``answer``, turns of conversations, or the ``target`` response
    (more_helpful or safer) of every pair. Arguments and errors as ``load_prompts``.
    """
    return _load(source, split, reading, _demonstrated(target))


def load_ranked(source: str, split: str, reading: Reading = ANY) -> Rows[RankedPair]:
    """Pairs of answers of which one is preferred. Arguments and errors as ``load_prompts``."""
    return _load(source, split, reading, _Form(lambda _: RANKED_COLUMNS, ranked_of))


def load_pairs(source: str, split: str, reading: Reading = ANY) -> Rows[PreferencePair]:
    """Pairs of labelled answers. Arguments and errors as ``load_prompts``."""
    return _load(source, split, reading, _Form(lambda _: PAIR_COLUMNS, pair_of))


def demonstrations(path: Path, left_out: Mapping[str, str] | None = None) -> Rows[Demonstration]:
    """Every model turn of a file of conversations, with the turns before it as history.

    Ids are the conversations', from the second turn on ``<id>/<number of the turn>``.
    Args: left_out: as in ``Rows.without``.
    Raises: DataError for a file without a usable turn.
    """
    table = open_file(path)
    rows = _rows(path.stem, table, LAYOUTS["llava"], _demonstrated(""))
    usable = rows.without(left_out or {})
    if not len(usable):
        raise DataError(f"{path}: no usable turn; rejected: {reasons_text(usable.rejected)}")
    return usable


def _demonstrated(target: str) -> _Form[Demonstration]:
    def build(name: str, row: Row, folders: Folders) -> Demonstration:
        if _has_targets(row):
            return demonstration(ranked_of(name, row, folders), target)
        return answered_of(name, row, folders)

    def columns(present: Container[str]) -> tuple[str, ...]:
        return RANKED_COLUMNS if _has_targets(present) else ANSWER_COLUMNS

    return _Form(columns, build)


def _has_targets(columns: Container[str]) -> bool:
    """Whether these columns hold two answers, of which the target is imitated."""
    return "response_1" in columns


def _load(source: str, split: str, reading: Reading, form: _Form[R]) -> Rows[R]:
    parts = []
    for part in split.split("+"):
        where = f"{source} [{part}]"
        table = open_table(source, part, reading)
        layout = layout_of(where, table.columns, reading.layout)
        rows = _rows(part, table, layout, form)
        if not len(rows):
            raise DataError(f"{where}: no usable row; rejected: {reasons_text(rows.rejected)}")
        parts.append(rows)
    return joined(parts)


def _rows(split: str, table: Table, layout: Layout, form: _Form[R]) -> Rows[R]:
    rows: dict[str, R] = {}
    rejected: Counter[str] = Counter()
    for number, (where, record) in enumerate(table.records):
        named = record.get("id") if isinstance(record, dict) else None
        try:
            made = list(layout.rows(str(named or f"{split}-{number:06d}"), record))
        except RejectedRowError as reason:
            rejected[reason.key] += 1
            continue
        for name, row in made:
            _check_columns(where, layout, row, form.columns(row))
            try:
                if name in rows:
                    raise RejectedRowError(Reason.REPEATED_ID)
                rows[name] = form.build(name, row, table.folders)
            except RejectedRowError as reason:
                rejected[reason.key] += 1
    return Rows(list(rows.values()), rejected)


def _check_columns(where: str, layout: Layout, row: Row, columns: tuple[str, ...]) -> None:
    for column in columns:
        if column not in row:
            raise DataError(f"{where}: column {column!r} is missing (read as {layout.what})")

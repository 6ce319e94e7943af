"""What readers of published layouts share. A benchmark is complete or an error: an item that is
left out would change what its rates mean.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys.data.columns import prompt_of
from rlsys.data.layouts.layout import RejectedRowError
from rlsys.data.pictures import StoredImage
from rlsys.data.rejections import reason_label
from rlsys.data.rows import Prompt
from rlsys.data.tables import Reading, open_table
from rlsys.errors import DataError
from rlsys.evaluation.benchmarks.benchmark import Item


def find(folder: Path, *places: str) -> Path:
    """The first of these files below the folder. Raises: DataError naming the first."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    for place in places:
        if (folder / place).is_file():
            return folder / place
    others = f" (nor {', '.join(places[1:])})" if places[1:] else ""
    raise DataError(f"{folder}: the benchmark's file {places[0]} is missing{others}")


def records_of(path: Path, *columns: str) -> list[tuple[str, dict[str, Any]]]:
    """Records of a JSON list, of a JSON object (key -> record), or of a CSV with a header, each
    with its place. Raises: DataError naming the record that lacks one of the columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            found: Any = list(csv.DictReader(text.splitlines(keepends=True)))
        else:
            found = json.loads(text)
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict | list) or not found:
        raise DataError(f"{path}: holds no records")
    named = found.items() if isinstance(found, dict) else enumerate(found, 1)
    records = []
    for name, record in named:
        where = f"{path}, record {name}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: not an object")
        for column in columns:
            if record.get(column) in (None, ""):
                raise DataError(f"{where}: has no {column}")
        records.append((where, record))
    return records


def prompt(where: str, name: str, question: Any, image: Any, **row: Any) -> Prompt:
    """Args: where: the row, for errors; image: a path, or a cell of a table. Raises: DataError
    naming the row, and the file of an image that is not there.
    """
    if isinstance(image, Path) and not image.is_file():
        raise DataError(f"{where}: its image {image} is missing")
    if isinstance(image, dict) and not (image.get("bytes") or image.get("path")):
        image = None
    if image is None or image == "":
        raise DataError(f"{where}: has no image")
    shown = str(image) if isinstance(image, Path) else image
    try:
        return prompt_of(name, {**row, "question": question, "image": shown}, ())
    except RejectedRowError as error:
        raise DataError(f"{where}: {reason_label(error.key)}") from error


def table_rows(folder: Path, split: str, *columns: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a split of a table, as hubs publish them, each with its place; images stay on disk.

    Raises: DataError for a folder without the split or a row without one of the columns.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    table = open_table(str(folder), split, Reading())
    rows = []
    for number, (_, row) in enumerate(table.records):
        where = f"{folder} [{split}], row {number}"
        for column in columns:
            if row.get(column) in (None, ""):
                raise DataError(f"{where}: has no {column}")
        image = row.get("image")
        if isinstance(image, str):
            places = [each / image for each in table.folders]
            row["image"] = next((p for p in places if p.is_file()), places[0])
        elif not isinstance(image, StoredImage | bytes | dict):
            raise DataError(f"{where}: has no image")
        rows.append((where, row))
    return rows


def texts_of(row: Mapping[str, Any], *columns: str) -> dict[str, Any]:
    """The columns that the row has."""
    return {column: row[column] for column in columns if column in row}


def checked(folder: Path, items: Sequence[Item]) -> list[Item]:
    """Raises: DataError for none, or a repeated id."""
    if not items:
        raise DataError(f"{folder}: the benchmark has no item here")
    name, count = Counter(item.prompt.id for item in items).most_common(1)[0]
    if count > 1:
        raise DataError(f"{folder}: {count} items have the id {name!r}")
    return list(items)

"""Records of one split, from files of a local folder or from a dataset on a hub.

A folder holds ``<split>.jsonl``, ``.json`` (a list of objects), ``.parquet`` or ``.arrow``, or
shards of them as hubs publish them: ``<split>-00000-of-00004.parquet``, ``<split>/0000.parquet``;
directly or in ``data/``, else in one folder per configuration. Parquet becomes memory-mapped Arrow
in the cache of ``datasets`` (``HF_DATASETS_CACHE``) once per node; images stay there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.data.pictures import StoredImage
from rlsys.errors import DataError

Row = dict[str, Any]
IMAGE_COLUMNS = ("image", "images")
SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow")
_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+")
# Written beside the tables by ``datasets``; no records.
_ABOUT = {"dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"}


@dataclass(frozen=True)
class Reading:
    """How a source is read. layout: a name in ``LAYOUTS``, empty: recognised by the columns;
    configs: its configurations, none: all; placed: on a hub, (split, configuration) of what it has.
    """

    layout: str = ""
    configs: tuple[str, ...] = ()
    placed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """records: (location for error messages, columns); folders: image paths are relative to the
    first of them that has the file, none: used as given.
    """

    columns: frozenset[str]
    records: Iterator[tuple[str, Any]]
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _File:
    path: Path
    split: str
    config: str


def open_table(source: str, split: str, reading: Reading) -> Table:
    """Args: source: a folder, one file, or a name on a hub. Raises: DataError."""
    if Path(source).is_file():
        return open_file(Path(source))
    if not Path(source).is_dir():
        return _of_arrow(f"{source} [{split}]", _hub_table(source, split, reading))
    found = [file for file in _files(Path(source), reading.configs) if file.split == split]
    if not found:
        there = ", ".join(split_names(source, reading)) or "none"
        raise DataError(f"{source}: no file of the split {split!r}; splits there: {there}")
    suffix = found[0].path.suffix
    return _read([file.path for file in found if file.path.suffix == suffix], split)


def open_file(path: Path) -> Table:
    """The records of one file. Raises: DataError."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: not one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return _read([path], path.stem)


def split_names(source: str, reading: Reading) -> list[str]:
    """The splits that a source has. Raises: DataError for a hub that cannot be reached."""
    if Path(source).is_file():
        return [Path(source).stem]
    if Path(source).is_dir():
        return sorted({file.split for file in _files(Path(source), reading.configs)})
    return sorted({split for split, _ in hub_splits(source, reading)})


def hub_splits(source: str, reading: Reading) -> tuple[tuple[str, str], ...]:
    """(split, configuration) of everything a dataset on a hub has.

    Raises: DataError for a configuration it lacks, or when it cannot be reached.
    """
    import datasets

    if reading.placed:
        return reading.placed
    with _reached(source):
        configs = datasets.get_dataset_config_names(source)
        for config in reading.configs:
            if config not in configs:
                raise DataError(
                    f"data.configs: {source} has no {config!r}; it has {', '.join(configs)}"
                )
        return tuple(
            (split, config)
            for config in reading.configs or configs
            for split in datasets.get_dataset_split_names(source, config)
        )


def _files(folder: Path, configs: Sequence[str]) -> list[_File]:
    """In the folder itself or ``data/``, else those of every configuration; in the order of
    ``SUFFIXES``. Raises: DataError for a configuration without a file.
    """
    paths = sorted(  # names before paths: there may be very many images
        Path(above, name)
        for above, _, names in os.walk(folder)
        for name in names
        if name.endswith(SUFFIXES) and name not in _ABOUT and not name.startswith(".")
    )
    files = [_placed(path, path.relative_to(folder)) for path in paths]
    for config in configs:
        if not any(file.config == config for file in files):
            there = ", ".join(sorted({file.config for file in files if file.config})) or "none"
            raise DataError(f"data.configs: {folder} has no {config!r}; it has {there}")
    if configs:
        files = [file for file in files if file.config in configs]
    else:  # files of the folder itself win over those below it, split by split
        direct = {file.split for file in files if not file.config}
        files = [file for file in files if not file.config or file.split not in direct]
    return sorted(files, key=lambda file: SUFFIXES.index(file.path.suffix))


def _placed(path: Path, relative: Path) -> _File:
    """``train.parquet``, ``data/train-00000-of-00002.parquet``, ``train/0000.parquet``,
    ``<config>/train.parquet``, ...
    """
    above, split = list(relative.parts[:-1]), path.stem
    if shard := _SHARD.fullmatch(split):
        split = shard["split"]
    if above and (split.isdigit() or split == "data"):
        split = above.pop()
    return _File(path, split, "/".join(part for part in above if part != "data"))


def _read(paths: Sequence[Path], split: str) -> Table:
    if paths[0].suffix in (".json", ".jsonl"):
        rows = [row for path in paths for row in json_rows(path)]
        columns = frozenset(rows[0][1]) if rows and isinstance(rows[0][1], dict) else frozenset()
        table = Table(columns, iter(rows))
    else:
        table = _of_arrow(f"{paths[0].parent} [{split}]", _mapped(paths))
    folder = paths[0].parent
    folders = (folder, folder / split, folder / "images", folder.parent)
    return Table(table.columns, table.records, folders)


def json_rows(path: Path) -> list[tuple[str, Any]]:
    """The records of a .json or .jsonl file with their locations. Raises: DataError."""
    try:
        if path.suffix == ".json":
            rows = json.loads(path.read_bytes().decode("utf-8"))
            if not isinstance(rows, list):
                raise DataError(f"{path}: not a list of records")
            return [(f"{path}, record {number}", row) for number, row in enumerate(rows, 1)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    found = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                if line.strip():
                    found.append((where, json.loads(line.decode("utf-8"))))
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 ({error})") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not JSON ({error})") from error
    return found


def _mapped(paths: Sequence[Path]) -> Any:
    """Arrow files as they are; Parquet, written as Arrow to the cache of ``datasets``."""
    import datasets
    import pyarrow as pa

    names = [str(path) for path in paths]
    try:
        if paths[0].suffix == ".arrow":
            parts = [datasets.Dataset.from_file(name) for name in names]
            return datasets.concatenate_datasets(parts)
        return datasets.Dataset.from_parquet(names)
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowException, ValueError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{names[0]}: cannot be read as {paths[0].suffix[1:]} ({cause})") from error


def _hub_table(source: str, split: str, reading: Reading) -> Any:
    import datasets

    placed = hub_splits(source, reading)
    configs = [config for name, config in placed if name == split]
    if not configs:
        there = ", ".join(sorted({name for name, _ in placed})) or "none"
        raise DataError(f"{source}: no split {split!r}; splits there: {there}")
    with _reached(source):
        parts = [datasets.load_dataset(source, config, split=split) for config in configs]
        return datasets.concatenate_datasets(parts)


@contextmanager
def _reached(source: str) -> Iterator[None]:
    """Errors of a hub as one DataError that names the dataset."""
    import datasets

    try:
        yield
    except DataError:
        raise
    except (datasets.exceptions.DatasetNotFoundError, OSError, ValueError) as error:
        raise DataError(
            f"{source}: neither a folder here nor a dataset that can be reached "
            f"({' '.join(str(error).split())})"
        ) from error


def _of_arrow(where: str, table: Any) -> Table:
    """The records with ``StoredImage`` in place of image bytes, which are not read."""
    columns = frozenset(table.column_names)
    shown = [name for name in IMAGE_COLUMNS if name in columns]
    if not shown:
        return Table(columns, ((where, row) for row in table))
    cells = zip(*(_cells(table.data.column(name)) for name in shown), strict=True)
    rows = zip(table.remove_columns(shown), cells, strict=True)
    return Table(
        columns, ((where, row | dict(zip(shown, each, strict=True))) for row, each in rows)
    )


def _cells(column: Any) -> Iterator[Any]:
    """As ``_image_cells``, or lists of them."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        column = column.cast(pa.list_(kind.value_type))
    elif not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        yield from _image_cells(column)
        return
    for chunk in column.chunks:  # values are those of the file, a null has none of them
        values = list(_image_cells(pa.chunked_array([chunk.values])))
        ends = chunk.offsets.to_pylist()
        for number, there in enumerate(chunk.is_valid().to_pylist()):
            yield values[ends[number] : ends[number + 1]] if there else None


def _image_cells(column: Any) -> Iterator[Any]:
    """A path, a ``StoredImage`` or None for each row. Lengths alone are read, and paths."""
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = encoded = None
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column, kind = column.cast(kind.storage_type), kind.storage_type
    if pa.types.is_struct(kind):
        names = {kind.field(number).name for number in range(kind.num_fields)}
        paths = pc.struct_field(column, "path") if "path" in names else None
        encoded = pc.struct_field(column, "bytes") if "bytes" in names else None
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        encoded = column
    else:
        paths = column
    empty = [None] * len(column)
    lengths = empty if encoded is None else pc.binary_length(encoded).to_pylist()
    named = empty if paths is None else paths.to_pylist()
    for number, (length, path) in enumerate(zip(lengths, named, strict=True)):
        if length:
            yield StoredImage(encoded, number)
        else:
            yield path if length is None else path or ""

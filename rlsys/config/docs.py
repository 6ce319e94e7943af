"""Tables of all keys, for ``rlsys config`` and docs/config.md, which is written by
``python -m rlsys.config.docs``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import get_type_hints

from rlsys.config.keys import KeyRow, default_text, describe, key_infos
from rlsys.config.schema import RunConfig
from rlsys.errors import ConfigError
from rlsys.stages.registry import STAGES

DOCS = Path(__file__).parents[2] / "docs" / "config.md"
COLUMNS = ("key", "type", "default", "range", "what")
INTRODUCTION = """\
# Keys of a recipe

Written by `python -m rlsys.config.docs` from the code: change a key there. `rlsys config` prints
the same, and `rlsys config KIND` one kind of stage with all that is inside it.

A recipe is YAML; every key can also be given on the command line under its dotted name, as in
`stages.ppo.lagrange.lr=0.01`. A key without a default is *required*. No number may be NaN or
infinite.
"""
STAGES_INTRODUCTION = """\
Under `stages.NAME`, by their `kind`. The keys of an OptimConfig, a TrainConfig and a GapConfig are
listed once, after them; those of an EngineConfig above, under engine.
"""


@dataclass(frozen=True)
class KeyTable:
    """The keys of one class; title: their section of a recipe."""

    title: str
    doc: str
    rows: tuple[KeyRow, ...]


def general_tables() -> list[KeyTable]:
    """Tables of the keys of a recipe, apart from its stages."""
    classes = {name: kind for name, kind in _types(RunConfig).items() if is_dataclass(kind)}
    rows = [row for row in describe(RunConfig) if row.key.partition(".")[0] not in classes]
    tables = [KeyTable("recipe", _doc(RunConfig), tuple(rows))]
    for name, kind in classes.items():
        tables.append(KeyTable(name, _doc(kind), tuple(describe(kind, f"{name}."))))
    return tables


def stage_tables() -> list[KeyTable]:
    """Tables of all stage kinds; a class that several kinds share is named, not repeated."""
    shared = _shared()
    tables = []
    for cls, kinds in groupby(STAGES, key=lambda kind: STAGES[kind].config):
        rows: list[KeyRow] = []
        for row in describe(cls):
            name, _, inner = row.key.partition(".")
            if not inner or _types(cls)[name] not in shared:
                rows.append(row)
            elif name not in (written.key for written in rows):
                rows.append(_reference(cls, name))
        tables.append(KeyTable(", ".join(kinds), _doc(cls), tuple(rows)))
    return tables


def shared_tables() -> list[KeyTable]:
    """Tables of the classes that several kinds share."""
    general = set(_types(RunConfig).values())
    return [
        KeyTable(cls.__name__, _doc(cls), tuple(describe(cls)))
        for cls in _shared()
        if cls not in general
    ]


def kind_table(kind: str) -> KeyTable:
    """One kind with all nested keys. Raises: ConfigError for an unknown kind."""
    if kind not in STAGES:
        raise ConfigError(f"{kind!r} is no kind of stage; there are {', '.join(STAGES)}")
    return KeyTable(kind, _doc(STAGES[kind].config), tuple(describe(STAGES[kind].config)))


def markdown() -> str:
    """The whole of docs/config.md."""
    parts = [INTRODUCTION, "## General\n", *map(_section, general_tables())]
    parts += ["## Stages\n", STAGES_INTRODUCTION]
    parts += map(_section, stage_tables())
    parts += ["## Shared by several stages\n", *map(_section, shared_tables())]
    return "\n".join(parts)


def _section(table: KeyTable) -> str:
    lines = [f"### {table.title}\n", f"{table.doc}\n"]
    lines += [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for row in table.rows:
        lines.append(_line([f"`{row.key}`", row.type, _code(row.default), row.range, row.doc]))
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _code(default: str) -> str:
    return f"`{default}`" if default != "required" else "*required*"


def _reference(cls: type, name: str) -> KeyRow:
    """One row for all keys of a shared class, with the defaults that differ from its own."""
    kind, value = _types(cls)[name], getattr(cls(), name)
    usual = asdict(kind())
    other = {key: each for key, each in asdict(value).items() if each != usual[key]}
    return KeyRow(name, kind.__name__, default_text(other), "", key_infos(cls)[name].doc)


def _types(cls: type) -> dict[str, type]:
    return get_type_hints(cls)


def _shared() -> list[type]:
    """Dataclasses that are fields of several classes, or several fields of one."""
    holders: Sequence[type] = (RunConfig, *dict.fromkeys(kind.config for kind in STAGES.values()))
    nested = [
        kind
        for cls in holders
        for kind in (_types(cls)[each.name] for each in fields(cls))
        if is_dataclass(kind)
    ]
    return [kind for kind in dict.fromkeys(nested) if nested.count(kind) > 1]


def _doc(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split())


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    target.write_text(markdown(), encoding="utf-8")
    print(target)

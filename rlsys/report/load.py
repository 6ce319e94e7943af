"""Reads the files of a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from rlsys.errors import ConfigError, DataError
from rlsys.evaluation.stats import Table
from rlsys.report.data import RunData, Sample, Series, Stage, is_number
from rlsys.report.recipe import Recipe, read_recipe
from rlsys.report.sections import self_evaluated


def load_run(folder: Path) -> RunData:
    """Read a run folder; only config.yaml must be there.

    Raises ConfigError for a missing or nameless config.yaml and DataError, naming file and row,
    for any other file that does not hold what it should.
    """
    name, config, recipe = _config(folder / "config.yaml")
    meta = _json(folder / "evaluation_meta.json")
    if meta is not None and not isinstance(meta, dict):
        raise DataError(f"{folder / 'evaluation_meta.json'}: expected a JSON object")
    return RunData(
        folder=folder,
        name=name,
        config=config,
        recipe=recipe,
        series=_series(folder / "metrics.jsonl"),
        stages=_stages(folder / "stages.json"),
        evaluation=_evaluation(folder / "evaluation.json"),
        evaluation_meta=meta or {},
        samples=_samples(folder / "samples.jsonl"),
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _config(path: Path) -> tuple[str, str, Recipe]:
    if not path.is_file():
        raise ConfigError(f"{path} is missing: is this the folder of a run?")
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("name"), str):
        raise ConfigError(f"{path}: the key 'name' is missing or no string")
    return tree["name"], text, read_recipe(tree, self_evaluated())


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error


def _json_lines(path: Path, needed: dict[str, type | tuple[type, ...]]) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object")
            _check(row, needed, f"{path}, line {number}")
            yield row


def _check(row: dict[str, Any], needed: dict[str, type | tuple[type, ...]], where: str) -> None:
    for key, kinds in needed.items():
        if key not in row:
            raise DataError(f"{where}: the key {key!r} is missing")
        # bool is a subclass of int, but `true` is no step and no number of seconds.
        takes_bool = bool in kinds if isinstance(kinds, tuple) else kinds is bool
        if not isinstance(row[key], kinds) or (isinstance(row[key], bool) and not takes_bool):
            raise DataError(f"{where}: {key} has the wrong type: {row[key]!r}")


def _series(path: Path) -> list[Series] | None:
    if not path.is_file():
        return None
    by_stage: dict[str, Series] = {}
    for row in _json_lines(path, {"stage": str, "kind": str, "step": int}):
        series = by_stage.setdefault(row["stage"], Series(row["stage"], row["kind"], []))
        # A resumed stage repeats the steps since its checkpoint: repeated rows replace
        # earlier ones. Two rows of one step are parts of the same record.
        while series.rows and series.rows[-1]["step"] > row["step"]:
            series.rows.pop()
        if series.rows and series.rows[-1]["step"] == row["step"]:
            series.rows[-1].update(row)
        else:
            series.rows.append(row)
    return list(by_stage.values())


def _stages(path: Path) -> list[Stage] | None:
    entries = _json(path)
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of stages")
    stages = []
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected a JSON object")
        needed: dict[str, type | tuple[type, ...]] = {
            "name": str, "kind": str, "seconds": (int, float), "reused": bool, "hash": str,
            "metrics": dict,
        }  # fmt: skip
        _check(entry, needed, where)
        for key, value in entry["metrics"].items():
            if not is_number(value):
                raise DataError(f"{where}: metric {key} is not a number: {value!r}")
        stages.append(Stage(**{key: entry[key] for key in needed}))
    return stages


def _evaluation(path: Path) -> dict[str, Table] | None:
    tables = _json(path)
    if tables is None:
        return None
    if not isinstance(tables, dict):
        raise DataError(f"{path}: expected a JSON object of policies")
    for policy, table in tables.items():
        if not isinstance(table, dict):
            raise DataError(f"{path}: policy {policy!r}: expected an object of splits")
        for split, row in table.items():
            if not isinstance(row, dict):
                raise DataError(f"{path}: {policy} / {split}: expected an object of metrics")
            for metric, cell in row.items():
                where = f"{path}: {policy} / {split} / {metric}"
                if cell is None:
                    continue
                if not isinstance(cell, dict):
                    raise DataError(f"{where}: expected an object or null")
                _check(cell, dict.fromkeys(("rate", "low", "high"), (int, float)), where)
                _check(cell, {"n": int}, where)
    # `start`, which all are compared with, comes first.
    return {name: tables[name] for name in sorted(tables, key=lambda name: name != "start")}


def _samples(path: Path) -> list[Sample] | None:
    if not path.is_file():
        return None
    optional_bool = (bool, type(None))
    needed: dict[str, type | tuple[type, ...]] = {
        "policy": str, "id": (str, int), "risk": str, "harmful": bool, "question": str,
        "image": (str, type(None)), "answer": str, "verdict": str, "safe": optional_bool,
        "helpful": optional_bool,
    }  # fmt: skip
    return [
        Sample(**{key: row[key] for key in needed} | {"id": str(row["id"])})
        for row in _json_lines(path, needed)
    ]

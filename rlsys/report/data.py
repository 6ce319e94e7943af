"""The data of a run that the report shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlsys.errors import DataError
from rlsys.evaluation.stats import Table
from rlsys.report.recipe import Recipe

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """The metric rows of one stage, in rising order of step."""

    stage: str
    kind: str
    rows: list[dict[str, Any]]

    def column(self, key: str) -> tuple[Array, Array]:
        """(steps, values) of the rows that hold `key`, both of shape (rows,)."""
        rows = [row for row in self.rows if row.get(key) is not None]
        for row in rows:
            if not is_number(row[key]):
                raise DataError(
                    f"metrics.jsonl: stage {self.stage!r}, step {row['step']}: "
                    f"{key} is not a number: {row[key]!r}"
                )
        return (
            np.array([row["step"] for row in rows], dtype=np.float64),
            np.array([row[key] for row in rows], dtype=np.float64),
        )

    def last(self, key: str) -> float | None:
        """The latest value of `key`, None where no row holds it."""
        values = self.column(key)[1]
        return float(values[-1]) if len(values) else None

    def names(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, without it, in order of appearance."""
        names = dict.fromkeys(key for row in self.rows for key in row if key.startswith(prefix))
        return [key.removeprefix(prefix) for key in names]


@dataclass(frozen=True)
class Stage:
    """One entry of stages.json; `seconds` is wall-clock time."""

    name: str
    kind: str
    seconds: float
    reused: bool
    hash: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One judged answer of one policy; `image` is a path relative to the run folder."""

    policy: str
    id: str
    risk: str
    harmful: bool
    question: str
    image: str | None
    answer: str
    verdict: str
    safe: bool | None
    helpful: bool | None


@dataclass(frozen=True)
class RunData:
    """All files of a run; None where the run folder has no such file."""

    folder: Path
    name: str
    config: str
    recipe: Recipe
    series: list[Series] | None
    stages: list[Stage] | None
    evaluation: dict[str, Table] | None
    evaluation_meta: dict[str, Any]
    samples: list[Sample] | None


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

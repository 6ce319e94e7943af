"""The definition of a stage kind; the file of each kind has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rlsys.config.schema import RunConfig
from rlsys.data.prepare import Datasets, Read
from rlsys.report.section import KindReport
from rlsys.report.supervised import SUPERVISED

if TYPE_CHECKING:
    from rlsys.stages.context import Context

C = TypeVar("C")
Result = dict[str, Any]
"""Metrics stored with a stage's artefact: name -> number."""


def no_roles(stage: Any, earlier: Mapping[str, Any]) -> Sequence[str]:
    return ()


def no_parts(stage: Any) -> Sequence[str]:
    return ()


def no_reads(stage: Any) -> Sequence[Read]:
    return ()


def no_check(config: RunConfig, name: str, stage: Any) -> None:
    pass


def no_data_check(name: str, stage: Any, data: Datasets) -> None:
    pass


def no_inputs(context: Context, name: str, stage: Any) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class StageKind(Generic[C]):
    """name: as a recipe writes it; config: its keys.

    run(context, name, stage, folder): fills the folder, which may hold the ``progress`` of a
    stopped run. Returns: metrics for the report.
    roles(stage, earlier): the roles it needs; earlier: the stages before it, by name.
    makes: kind of its artefact, for keys with that ``ref``; None: no key may name it.
    check(config, name, stage): checks across sections of the recipe. Raises: ConfigError.
    inputs(context, name, stage): what its result depends on besides its keys, the artefacts they
    name, the data and the seed.
    reads(stage): the rows it needs.
    check_data(name, stage, data): checks these rows. Raises: ConfigError, DataError.
    report: its section of the report.
    parts(stage): folders of its artefact that a key may name as ``stage/part``.
    samples: it samples from rollout engines, so their settings affect its result.
    evaluates: its folder holds evaluation.json and the samples of the gallery.
    trains: it resumes from the checkpoints of a stopped run.
    keeps: files of its folder that are copied to ``<kind>/<stage>`` in the run directory.
    """

    name: str
    config: type[C]
    run: Callable[[Context, str, C, Path], Result]
    roles: Callable[[C, Mapping[str, Any]], Sequence[str]] = no_roles
    makes: str | None = None
    check: Callable[[RunConfig, str, C], None] = no_check
    inputs: Callable[[Context, str, C], dict[str, str]] = no_inputs
    reads: Callable[[C], Sequence[Read]] = no_reads
    check_data: Callable[[str, C, Datasets], None] = no_data_check
    report: KindReport = SUPERVISED
    parts: Callable[[C], Sequence[str]] = no_parts
    samples: bool = False
    evaluates: bool = False
    trains: bool = False
    keeps: tuple[str, ...] = ()

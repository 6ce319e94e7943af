"""What is known of a stage kind. Each kind's own file fills one of these in."""

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
"""What a stage reports with its artefact: metric name -> number."""


def no_roles(stage: Any, earlier: Mapping[str, Any]) -> Sequence[str]:
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

    run(context, name, stage, folder): fills the folder, which may hold what a stopped run left in
    ``progress``. Returns: numbers for the report.
    roles(stage, earlier): the roles it needs, given the stages before it by name.
    makes: the kind of artefact that a key with that ``ref`` may name; None: nothing to name.
    check(config, name, stage): what spans sections of the recipe. Raises: ConfigError.
    inputs(context, name, stage): what its result depends on beside its keys, what they name, the
    data and the seed.
    reads(stage): the rows it needs.
    check_data(name, stage, data): whether those rows suffice. Raises: ConfigError, DataError.
    report: what it shows in the report.
    samples: it samples from rollout engines, whose settings then decide about its result.
    evaluates: its folder holds evaluation.json and the samples of the gallery.
    trains: it goes on from the checkpoints that a stopped run left.
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
    samples: bool = False
    evaluates: bool = False
    trains: bool = False

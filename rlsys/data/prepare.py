"""The data of a run: a built-in world drawn once, a folder, or a hub; checked before any work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.artifacts import ArtifactStore, path_hash
from rlsys.config.feedback import ObserveStage
from rlsys.config.schema import RunConfig
from rlsys.config.stages import FilterStage, SafeRlhfStage, SftStage
from rlsys.data.record import Records, joined, leaked_ids, rows_digest
from rlsys.data.records import load_records
from rlsys.data.worlds import WORLDS
from rlsys.errors import ConfigError, DataError
from rlsys.evaluation.verdict import Verdict

HUB_NAME = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")  # no leading dot, at most one slash
LEARNING = SftStage | FilterStage | ObserveStage  # stages with splits of their own


@dataclass(frozen=True)
class Prepared:
    """``source`` is what ``load_records`` reads; ``leaked`` the training ids to leave out.

    ``training`` holds every split, or joined splits, that a stage learns from.
    """

    source: str
    digest: str
    leaked: dict[str, frozenset[str]]
    oracle: Callable[[Mapping[str, Any], str], Verdict] | None
    training: dict[str, Records]
    validation: Records
    evaluation: Records
    summary: str

    @property
    def train(self) -> Records:
        return self.training["train"]


def prepare(config: RunConfig, store: ArtifactStore) -> Prepared:
    """Draw or read all splits. Raises: DataError, ConfigError."""
    data = config.data
    source, oracle = data.source, None
    if source in WORLDS:
        world = WORLDS[source]
        missing = {"train", "validation", "evaluation"} - data.sizes.keys()
        if missing:
            raise ConfigError(f"data.sizes: {source} needs the number of rows for {min(missing)}")

        def draw(folder: Path) -> dict[str, Any]:
            world.write(folder, sizes=data.sizes, seed=config.seed)
            return {}

        drawn = store.get_or_make(
            "data", {"world": source, "sizes": data.sizes, "seed": config.seed}, {}, draw
        )
        source, digest, oracle = str(drawn.folder), drawn.digest, world.judge
    elif data.sizes:
        raise ConfigError("data.sizes: only built-in worlds draw rows; remove it")
    else:
        folder = Path(source)
        if not folder.is_dir() and names_folder(source):
            raise ConfigError(f"data.source: {source}: no such folder")
        digest = path_hash(folder) if folder.is_dir() else ""
        source = str(folder.resolve()) if folder.is_dir() else source
    evaluation = load_records(source, data.evaluation_split)
    used = [
        "train",
        *(s.split for s in config.stages.values() if isinstance(s, LEARNING) and s.split),
    ]
    names = dict.fromkeys(part for split in used for part in split.split("+"))
    parts = {name: load_records(source, name) for name in names}
    validation = load_records(source, data.validation_split)
    # Under a name on a hub the rows may change; those that this recipe reads count.
    digest = digest or rows_digest([*parts.values(), validation, evaluation])
    labelled = {"train": parts["train"], "validation": validation, "evaluation": evaluation}
    for name, records in labelled.items():
        if not records.paired:
            raise DataError(f"{source} [{name}]: needs two labelled answers a row, not turns")
    for key, stage in config.stages.items():
        filters = isinstance(stage, FilterStage)
        if filters and not all(parts[name].paired for name in stage.split.split("+")):
            raise DataError(f"stages.{key}.split: {stage.split} holds turns, not labelled rows")
    leaked = {name: leaked_ids(records, evaluation) for name, records in parts.items()}
    for name, ids in leaked.items():
        if ids:
            parts[name] = load_records(source, name, exclude=ids)
    training = {split: joined([parts[name] for name in split.split("+")]) for split in used}
    _check_prompts(config, len(training["train"]))
    for split in used:
        leaked[split] = frozenset().union(*(leaked[name] for name in split.split("+")))
    summary = _summary({**parts, "validation": validation, "evaluation": evaluation})
    return Prepared(source, digest, leaked, oracle, training, validation, evaluation, summary)


def names_folder(source: str) -> bool:
    """Whether a source can only be a folder: a hub knows NAME and OWNER/NAME, and an owner is no
    folder here. A hub is asked for minutes before it is given up.
    """
    owner, _, _ = source.rpartition("/")
    return not HUB_NAME.fullmatch(source) or bool(owner and Path(owner).exists())


def _check_prompts(config: RunConfig, rows: int) -> None:
    for name, stage in config.stages.items():
        if isinstance(stage, SafeRlhfStage) and stage.ppo.prompts > rows:
            raise ConfigError(
                f"stages.{name}.ppo.prompts: {stage.ppo.prompts} prompts per iteration, "
                f"the train split has {rows} usable rows"
            )


def _summary(splits: dict[str, Records]) -> str:
    sizes = ", ".join(f"{len(records)} {name}" for name, records in splits.items())
    rejected: Counter[str] = Counter()
    for records in splits.values():
        rejected += records.rejected
    reasons = "; ".join(f"{n} x {reason}" for reason, n in rejected.most_common())
    return f"{sizes}" + (f"; rejected {reasons}" if reasons else "")

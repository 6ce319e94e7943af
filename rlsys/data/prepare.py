"""The data of a run: a built-in world drawn once, a folder, or a hub; only what its stages read."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlsys.artifacts import ArtifactStore, path_hash
from rlsys.config.schema import RunConfig
from rlsys.data.rows import (
    Demonstration,
    PreferencePair,
    Prompt,
    R,
    Rows,
    ids_digest,
    leaked_ids,
    rows_digest,
)
from rlsys.data.slice import DataSlice, RowKind
from rlsys.data.source import load_demonstrations, load_pairs, load_prompts
from rlsys.data.worlds import WORLDS
from rlsys.errors import ConfigError, DataError
from rlsys.evaluation.verdict import Verdict

HUB_NAME = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")  # no leading dot, at most one slash


@dataclass(frozen=True)
class Read:
    """What a stage reads: a split, or several joined by a plus sign, as rows of one kind."""

    split: str
    kind: RowKind
    target: str = ""
    "Demonstrations: which response of a pair is imitated."
    learned: bool = False
    "Learned from: never rows that are held out."
    judged: bool = False
    "A judge looks at all rows: each needs an image, and no earlier turns."
    world_only: bool = False
    "Read only where the source is a built-in world, which knows the right replies."


TRAIN_PROMPTS = Read("train", RowKind.PROMPTS, learned=True)
TRAIN_PAIRS = Read("train", RowKind.PAIRS, learned=True)
EVALUATION_PROMPTS = Read("evaluation", RowKind.PROMPTS)
EVALUATION_PAIRS = Read("evaluation", RowKind.PAIRS)


class Datasets:
    """Rows of a recipe's source, loaded when they are first asked for.

    ``source`` is what ``load_prompts`` reads; ``oracle`` judges answers, where the source has one.
    Splits go by the names that stages use: validation and evaluation are mapped by the recipe.
    Raises: ConfigError for sizes that do not fit the source.
    """

    def __init__(
        self, config: RunConfig, store: ArtifactStore, reads: Sequence[tuple[str, Read]]
    ) -> None:
        world = config.data.source in WORLDS
        self.config = config
        self.reads = [(name, read) for name, read in reads if world or not read.world_only]
        self.oracle: Callable[[Mapping[str, Any], str], Verdict] | None = None
        self._loaded: dict[tuple[str, RowKind, str], Rows[Any]] = {}
        self._leaked: dict[str, frozenset[str]] = {}
        self.source = config.data.source
        self._known = ""  # digest of the source, where it lies on disk
        if self.source in WORLDS:
            self._draw(store)
        elif config.data.sizes:
            raise ConfigError("data.sizes: only built-in worlds draw rows; remove it")
        elif not Path(self.source).is_dir() and names_folder(self.source):
            raise ConfigError(f"data.source: {self.source}: no such folder")
        elif Path(self.source).is_dir():
            self._known = path_hash(Path(self.source))
            self.source = str(Path(self.source).resolve())

    def _draw(self, store: ArtifactStore) -> None:
        world, sizes = WORLDS[self.source], self.config.data.sizes
        for name, read in self.reads:
            for part in self._on_disk(read.split):
                if part not in sizes:
                    raise ConfigError(
                        f"data.sizes: {self.source} needs the number of rows for {part}, "
                        f"which stages.{name} reads"
                    )

        def draw(folder: Path) -> dict[str, Any]:
            world.write(folder, sizes=sizes, seed=self.config.seed)
            return {}

        settings = {"world": self.source, "sizes": sizes, "seed": self.config.seed}
        drawn = store.get_or_make("data", settings, {}, draw)
        self.source, self._known = str(drawn.folder), drawn.digest
        self.oracle = world.judge

    def prompts(self, split: str) -> Rows[Prompt]:
        """Raises: DataError."""
        return self._once(split, RowKind.PROMPTS, "", load_prompts)

    def demonstrations(self, split: str, target: str) -> Rows[Demonstration]:
        """target: which response of a pair is imitated. Raises: DataError."""

        def load(source: str, split: str, *, exclude: frozenset[str]) -> Rows[Demonstration]:
            return load_demonstrations(source, split, target, exclude=exclude)

        return self._once(split, RowKind.DEMONSTRATIONS, target, load)

    def pairs(self, split: str) -> Rows[PreferencePair]:
        """Raises: DataError."""
        return self._once(split, RowKind.PAIRS, "", load_pairs)

    def rows(self, split: str, kind: RowKind, target: str = "") -> Rows[Prompt]:
        """Of the type that ``kind`` names. Raises: DataError."""
        if kind is RowKind.PAIRS:
            return self.pairs(split)
        if kind is RowKind.DEMONSTRATIONS:
            return self.demonstrations(split, target)
        return self.prompts(split)

    def slice(self, split: str, kind: RowKind, target: str = "") -> DataSlice:
        """The same rows, for a role in another process; none of a split where it is empty."""
        limit = self.config.data.max_prompt_tokens
        if not split:
            return DataSlice(self.source, "", kind, limit, target)
        return DataSlice(
            self.source,
            "+".join(self._on_disk(split)),
            kind,
            limit,
            target,
            exclude=self._leaks(split),
            ids=ids_digest(self.rows(split, kind, target)),
        )

    @cached_property
    def held_out(self) -> Rows[Prompt] | None:
        """The evaluation split, where a stage reads it: its images are not learned from."""
        used = any(read.split == "evaluation" and not read.learned for _, read in self.reads)
        return load_prompts(self.source, self.config.data.evaluation_split) if used else None

    @cached_property
    def digest(self) -> str:
        """Changes with the rows of the source (on a hub, where rows may change under a name: with
        those that are read), and with which of them are left out.
        """
        known = self._known or rows_digest(
            self.rows(read.split, read.kind, read.target) for _, read in self.reads
        )
        left_out = sorted(frozenset().union(*(self._leaks(read.split) for _, read in self.reads)))
        return hashlib.sha256("\n".join([known, *left_out]).encode()).hexdigest()

    @property
    def learned(self) -> list[tuple[str, RowKind, str]]:
        """What stages learn from (split, kind, target), each split as the kind that says most."""
        order = list(RowKind)
        found = {(r.split, r.kind, r.target) for _, r in self.reads if r.learned}
        most = {
            split: max(order.index(kind) for other, kind, _ in found if other == split)
            for split, *_ in found
        }
        kept = [each for each in found if order.index(each[1]) == most[each[0]]]
        return sorted(kept, key=lambda each: (each[0], each[2]))

    def texts(self) -> list[str]:
        """All that stages learn from: what a tokenizer made for this recipe learns."""
        learned = [self.rows(*each) for each in self.learned]
        return [text for rows in learned for row in rows.rows for text in row.texts]

    @property
    def summary(self) -> str:
        """Numbers of rows, by split and kind, and what was rejected, in words."""
        sizes: dict[str, dict[str, str]] = {}
        rejected: dict[str, Counter[str]] = {}
        for (split, kind, _), rows in self._loaded.items():
            plain = sum(row.image is None for row in rows.rows)
            size = f"{len(rows)} {kind.value}" + f" ({plain} without an image)" * bool(plain)
            sizes.setdefault(split, {})[kind.value] = size
            rejected[split] = rejected.get(split, Counter()) | rows.rejected
        found = "; ".join(f"{split}: {', '.join(kinds.values())}" for split, kinds in sizes.items())
        total = sum(rejected.values(), Counter[str]())
        reasons = ", ".join(f"{n} x {reason}" for reason, n in total.most_common())
        return found + (f"; rejected {reasons}" if reasons else "")

    def _once(
        self, split: str, kind: RowKind, target: str, load: Callable[..., Rows[R]]
    ) -> Rows[R]:
        key = (split, kind, target)
        if key not in self._loaded:
            parts = "+".join(self._on_disk(split))
            self._loaded[key] = load(self.source, parts, exclude=self._leaks(split))
        return self._loaded[key]

    def _on_disk(self, split: str) -> list[str]:
        """Names of the parts of a split in the source."""
        data = self.config.data
        names = {"validation": data.validation_split, "evaluation": data.evaluation_split}
        return [names.get(part, part) for part in split.split("+")]

    def _leaks(self, split: str) -> frozenset[str]:
        """Ids of rows whose image is held out; none in the evaluation split itself."""
        for part in self._on_disk(split):
            if part in self._leaked:
                continue
            if self.held_out is None or part == self.config.data.evaluation_split:
                self._leaked[part] = frozenset()
            else:
                self._leaked[part] = leaked_ids(load_prompts(self.source, part), self.held_out)
        return frozenset().union(*(self._leaked[part] for part in self._on_disk(split)))

    def check(self) -> None:
        """Load all that stages read. Raises: DataError, ConfigError."""
        for name, read in self.reads:
            if read.learned and self.held_out is not None:
                held_out = self.config.data.evaluation_split
                if held_out in self._on_disk(read.split):
                    raise ConfigError(
                        f"data.evaluation_split: {held_out} is held out, and stages.{name} "
                        "learns from it"
                    )
            rows = self.rows(read.split, read.kind, read.target)
            for row in rows.rows if read.judged else []:
                if row.image is None or row.history:
                    raise DataError(
                        f"stages.{name}: row {row.id} has no image or is a later turn; a judge "
                        "is asked about one image and one question"
                    )


def names_folder(source: str) -> bool:
    """Whether a source can only be a folder: a hub knows NAME and OWNER/NAME, and an owner is no
    folder here. A hub is asked for minutes before it is given up.
    """
    owner, _, _ = source.rpartition("/")
    return not HUB_NAME.fullmatch(source) or bool(owner and Path(owner).exists())


def prepare(config: RunConfig, store: ArtifactStore, reads: Sequence[tuple[str, Read]]) -> Datasets:
    """Draw or read what the stages of a recipe read, and check it before anything starts.

    Args: reads: the name of each stage with what it reads.
    Raises: DataError, ConfigError.
    """
    data = Datasets(config, store, reads)
    data.check()
    return data

"""The datasets of a run, from a built-in world, a folder or a hub; only the splits stages read."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rlsys.artifacts import ArtifactStore, path_hash
from rlsys.config.schema import RunConfig
from rlsys.data.left_out import LeftOut
from rlsys.data.rejections import Reason, check_share, reasons_text
from rlsys.data.rows import (
    Demonstration,
    PixelHashes,
    PreferencePair,
    Prompt,
    R,
    RankedPair,
    Rows,
    ids_digest,
    joined,
    pixel_hashes,
    rows_digest,
)
from rlsys.data.slice import DataSlice, RowKind, load_rows
from rlsys.data.source import load_prompts
from rlsys.data.tables import Reading, hub_splits
from rlsys.data.worlds import WORLDS
from rlsys.errors import ConfigError
from rlsys.evaluation.verdict import Verdict

HASHES = "hashes.json"
HUB_NAME = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")  # no leading dot, at most one slash


@dataclass(frozen=True)
class Read:
    """A split that a stage reads, or several joined by a plus sign, as rows of one kind."""

    split: str
    kind: RowKind
    target: str = ""
    "Demonstrations: which response of a pair is imitated."
    learned: bool = False
    "Trained on: rows with a held-out image are excluded."
    held_out: bool = False
    "Measured on: no stage learns from it, nor from rows with its images."
    judged: bool = False
    "Shown to a judge: rows without an image or with several, and later turns, are left out."
    world_only: bool = False
    "Read only where the source is a built-in world, whose oracle is needed."


class Datasets:
    """Rows of a recipe's source, loaded on first use.

    source: as in ``load_prompts``; oracle: judges answers, None where the source has none. Splits
    have the names that stages use; the recipe maps validation and evaluation to the source's names.
    Raises: ConfigError for sizes that do not fit the source; DataError for configurations that the
    source lacks, or a hub that cannot be reached.
    """

    def __init__(
        self, config: RunConfig, store: ArtifactStore, reads: Sequence[tuple[str, Read]]
    ) -> None:
        world = config.data.source in WORLDS
        self.config, self.store = config, store
        self.reads: Sequence[tuple[str, Read]] = [
            (name, read) for name, read in reads if world or not read.world_only
        ]
        self.oracle: Callable[[Mapping[str, Any], str], Verdict] | None = None
        self._loaded: dict[tuple[str, RowKind, str], Rows[Any]] = {}
        self.source = config.data.source
        self.reading = Reading(config.data.layout, tuple(config.data.configs))
        self._source_digest = ""  # empty for a hub
        if self.source in WORLDS:
            self._draw(store)
        elif config.data.sizes:
            raise ConfigError("data.sizes: only built-in worlds draw rows; remove it")
        elif not Path(self.source).is_dir() and names_folder(self.source):
            raise ConfigError(f"data.source: {self.source}: no such folder")
        elif Path(self.source).is_dir():
            self._source_digest = path_hash(Path(self.source)) if self.reads else ""
            self.source = str(Path(self.source).resolve())
        elif self.reads:
            placed = hub_splits(self.source, self.reading)
            self.reading = replace(self.reading, placed=placed)
        self.left_out = LeftOut(self)

    def _draw(self, store: ArtifactStore) -> None:
        world, sizes = WORLDS[self.source], self.config.data.sizes
        for name, read in self.reads:
            for part in self.parts(read.split):
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
        self.source, self._source_digest = str(drawn.folder), drawn.digest
        self.oracle = world.judge

    def prompts(self, split: str) -> Rows[Prompt]:
        """Raises: DataError."""
        return self.rows(split, RowKind.PROMPTS)

    def demonstrations(self, split: str, target: str) -> Rows[Demonstration]:
        """target: which response of a pair is imitated. Raises: DataError."""
        return self.rows(split, RowKind.DEMONSTRATIONS, target)

    def ranked(self, split: str) -> Rows[RankedPair]:
        """Raises: DataError."""
        return self.rows(split, RowKind.RANKED)

    def pairs(self, split: str) -> Rows[PreferencePair]:
        """Raises: DataError."""
        return self.rows(split, RowKind.PAIRS)

    def rows(self, split: str, kind: RowKind, target: str = "") -> Rows[Any]:
        """Rows of the type that ``kind`` names. Raises: DataError."""
        key = (split, kind, target)
        if key not in self._loaded:
            parts = [self._of_part(part, kind, target) for part in self.parts(split)]
            self._loaded[key] = joined(parts)
        return self._loaded[key]

    def _of_part(self, part: str, kind: RowKind, target: str) -> Rows[Any]:
        everything = load_rows(self.source, self.left_out.base(part), kind, target, self.reading)
        rows = self._checked(part, self.left_out.apply(part, kind, everything))
        return self.shown(rows)

    def shown(self, rows: Rows[R]) -> Rows[R]:
        """The rows as the run's models see them."""
        data = self.config.data
        blank, system = data.blank_images, data.system_prompt
        return rows.shown(blank=blank, max_pixels=data.max_pixels, system=system)

    def _checked(self, split: str, rows: Rows[R]) -> Rows[R]:
        data = self.config.data
        check_share(f"{self.source} [{split}]", len(rows), rows.rejected, data.min_usable)
        return rows

    def slice(self, split: str, kind: RowKind, target: str = "") -> DataSlice:
        """The same rows for a role in another process; an empty ``split`` has none."""
        data = self.config.data
        empty = DataSlice(
            self.source, "", kind, data.max_prompt_tokens, target, reading=self.reading,
            blank_images=data.blank_images, max_pixels=data.max_pixels, system=data.system_prompt,
        )  # fmt: skip
        if not split:
            return empty
        parts = self.parts(split)
        return replace(
            empty,
            split="+".join(self.left_out.base(part) for part in parts),
            exclude=frozenset().union(*(self.left_out.ids(part, kind) for part in parts)),
            ids=ids_digest(self.rows(split, kind, target)),
        )

    @property
    def held_out(self) -> dict[str, Rows[Prompt]]:
        """The splits that stages are measured or calibrated on, by the source's names: rows with
        their images are not trained on.
        """
        return {part: self.left_out.prompts(part) for part in self.left_out.guarded}

    @cached_property
    def digest(self) -> str:
        """Hash of the source (on a hub, where a name may get other rows: of the rows read) and of
        the ids that are left out.
        """
        source = self._source_digest or rows_digest(
            self.rows(read.split, read.kind, read.target) for _, read in self.reads
        )
        data = self.config.data
        how = ["blank"] * data.blank_images + [f"{data.max_pixels} px"] * bool(data.max_pixels)
        how += [f"system: {data.system_prompt!r}"] * bool(data.system_prompt)
        lines = [source, repr(self.reading), *self.left_out.described(), *how]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def hashes(self, split: str) -> dict[str, PixelHashes]:
        """Pixel hashes of a split of the source by id, None for an image that cannot be read. They
        are kept beside the artefacts, if the source is a folder.
        """
        if not self._source_digest:
            return pixel_hashes(load_prompts(self.source, split, self.reading))

        def make(folder: Path) -> dict[str, Any]:
            found = pixel_hashes(load_prompts(self.source, split, self.reading))
            (folder / HASHES).write_text(json.dumps(found))
            return {}

        settings = {"split": split, "reading": asdict(self.reading)}
        made = self.store.get_or_make("pixels", settings, {"data": self._source_digest}, make)
        found = json.loads((made.folder / HASHES).read_text())
        return {name: None if each is None else tuple(each) for name, each in found.items()}

    @property
    def learned(self) -> list[tuple[str, RowKind, str]]:
        """(split, kind, target) that stages train on, each split as its kind with most columns."""
        order = list(RowKind)
        reads = {(r.split, r.kind, r.target) for _, r in self.reads if r.learned}
        most = {
            split: max(order.index(kind) for other, kind, _ in reads if other == split)
            for split, *_ in reads
        }
        richest = [each for each in reads if order.index(each[1]) == most[each[0]]]
        return sorted(richest, key=lambda each: (each[0], each[2]))

    def texts(self) -> list[str]:
        """All texts that stages train on; a new tokenizer is trained on them."""
        learned = [self.rows(*each) for each in self.learned]
        return [text for rows in learned for row in rows.rows for text in row.texts]

    @property
    def summary(self) -> str:
        """Row counts by split and kind, and rejected rows by reason, as one line."""
        sizes: dict[str, dict[str, str]] = {}
        rejected: dict[str, Counter[str]] = {}
        for (split, kind, _), rows in self._loaded.items():
            no_image = sum(row.image is None for row in rows.rows)
            size = f"{len(rows)} {kind.value}" + f" ({no_image} without an image)" * bool(no_image)
            sizes.setdefault(split, {})[kind.value] = size
            rejected[split] = rejected.get(split, Counter()) | rows.rejected
        parts = "; ".join(f"{split}: {', '.join(kinds.values())}" for split, kinds in sizes.items())
        total = sum(rejected.values(), Counter[str]())
        return parts + (f"; rejected {reasons_text(total)}" if total else "")

    def parts(self, split: str) -> list[str]:
        """The source's names of the splits that ``split`` joins by a plus sign."""
        data = self.config.data
        names = {"validation": data.validation_split, "evaluation": data.evaluation_split}
        return [names.get(part, part) for part in split.split("+")]

    def leave_out(
        self, split: str, reasons: Mapping[str, str], kind: RowKind | None = None
    ) -> None:
        """Args: reasons: id -> key; kind: only rows read as this kind."""
        parts = self.parts(split)
        self.left_out.add(parts, reasons, kind)
        for key, rows in self._loaded.items():
            if kind in (None, key[1]) and set(parts) & set(self.parts(key[0])):
                self._loaded[key] = self._checked(key[0], rows.without(reasons))

    def check(self) -> None:
        """Load and check everything that stages read. Raises: DataError, ConfigError."""
        measured = {
            part: name
            for name, read in self.reads
            for part in (self.parts(read.split) if read.held_out else [])
        }
        for name, read in self.reads:
            for part in self.parts(read.split) if read.learned else []:
                if part in measured:
                    raise ConfigError(
                        f"stages.{name}: learns from the split {part}, which stages."
                        f"{measured[part]} is measured on"
                    )
            rows = self.rows(read.split, read.kind, read.target)
            if read.judged:
                self.leave_out(read.split, _not_judged(rows), read.kind)


def _not_judged(rows: Rows[Prompt]) -> dict[str, str]:
    """Ids of the rows about which a judge can be given no question, with the reason."""
    later = {row.id: Reason.LATER_TURN for row in rows.rows if row.history}
    several = {row.id: Reason.SEVERAL_IMAGES for row in rows.rows if len(row.images) > 1}
    reasons = later | several | {row.id: Reason.NO_IMAGE for row in rows.rows if not row.images}
    return {name: str(reason) for name, reason in reasons.items()}


def names_folder(source: str) -> bool:
    """Whether a source can only be a local folder: hub names are NAME or OWNER/NAME, where OWNER is
    no folder here. Avoids minutes of retries on a hub.
    """
    owner, _, _ = source.rpartition("/")
    return not HUB_NAME.fullmatch(source) or bool(owner and Path(owner).exists())


def prepare(config: RunConfig, store: ArtifactStore, reads: Sequence[tuple[str, Read]]) -> Datasets:
    """Generate or load the data of a recipe's stages, and check it before any process starts.

    Args: reads: the name of each stage with what it reads.
    Raises: DataError, ConfigError.
    """
    data = Datasets(config, store, reads)
    data.check()
    return data

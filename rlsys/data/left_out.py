"""Which rows of a run's splits are left out, for the sake of others or for a fault found later.

Where the source has no validation split, part of its train split is kept for it: all rows of a
picture or none, by the hash of the pixels of its first one (of the question, for a row without).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from rlsys.config.schema import RunConfig
from rlsys.data.rejections import Reason
from rlsys.data.rows import PixelHashes, Prompt, R, Rows
from rlsys.data.slice import RowKind
from rlsys.data.source import load_prompts
from rlsys.data.tables import Reading, split_names
from rlsys.errors import ConfigError

TRAIN = "train"  # the split that validation is cut off from


class _Source(Protocol):
    """What ``Datasets`` offers here. reads: stages with what they read."""

    config: RunConfig
    source: str
    reading: Reading

    @property
    def reads(self) -> Sequence[tuple[str, Any]]: ...

    def parts(self, split: str) -> list[str]: ...
    def hashes(self, split: str) -> dict[str, PixelHashes]: ...


class LeftOut:
    """Rows left out, by the source's name of their split. Everything is computed on first use.

    Raises: ConfigError for splits joined with a part of themselves.
    """

    def __init__(self, data: _Source) -> None:
        self.data = data
        self._faulty: dict[tuple[str, RowKind | None], dict[str, str]] = {}
        self._reasons: dict[str, dict[str, str]] = {}
        self._prompts: dict[str, Rows[Prompt]] = {}
        self._hashes: dict[str, dict[str, PixelHashes]] = {}
        for name, read in data.reads:
            if {TRAIN, self._validation} <= set(data.parts(read.split)) and self._cut:
                raise ConfigError(
                    f"stages.{name}: {read.split!r} joins {TRAIN} with {self._validation}, which "
                    "the source lacks, so that it is a part of train"
                )

    @property
    def _validation(self) -> str:
        return self.data.config.data.validation_split

    @cached_property
    def _cut(self) -> bool:
        """Whether validation is cut off from train."""
        read = {part for _, each in self.data.reads for part in self.data.parts(each.split)}
        if self._validation not in read:
            return False
        there = split_names(self.data.source, self.data.reading)
        return self._validation not in there and TRAIN in there

    @cached_property
    def guarded(self) -> list[str]:
        """Splits that stages are measured on, and validation, which calibrates thresholds."""
        parts: set[str] = set()
        for _, read in self.data.reads:
            named = self.data.parts(read.split)
            if read.held_out or (not read.learned and self._validation in named):
                parts |= set(named)
        return sorted(parts)

    def base(self, part: str) -> str:
        """The split on disk that holds the rows of ``part``."""
        return TRAIN if self._cut and part == self._validation else part

    def prompts(self, part: str) -> Rows[Prompt]:
        """All rows of a split, whether left out or not."""
        base = self.base(part)
        if base not in self._prompts:
            self._prompts[base] = load_prompts(self.data.source, base, self.data.reading)
        rows = self._prompts[base]
        if base == part:
            return rows
        return Rows([row for row in rows.rows if row.id in self._kept_for_validation])

    def apply(self, part: str, kind: RowKind, rows: Rows[R]) -> Rows[R]:
        """``rows`` of the split on disk without what is left out."""
        if self.base(part) != part:  # its rejected rows are counted where they are
            kept = [row for row in rows.rows if row.id in self._kept_for_validation]
            rows = Rows(kept, Counter())
        return rows.without(self._of(part, kind))

    def ids(self, part: str, kind: RowKind) -> frozenset[str]:
        """Ids on disk that are not rows of ``part``."""
        left = frozenset(self._of(part, kind))
        if self.base(part) == part:
            return left
        everyone = {row.id for row in self.prompts(self.base(part)).rows}
        return left | (everyone - self._kept_for_validation)

    def described(self) -> list[str]:
        """Lines that differ where other rows are left out."""
        lines = [f"cut {self.data.config.data.validation_share}"] * self._cut
        reads = {(part, read.kind) for _, read in self.data.reads
                 for part in self.data.parts(read.split)}  # fmt: skip
        left = {f"{part} {name}" for part, kind in reads for name in self._of(part, kind)}
        return lines + sorted(left)

    def leaked(self, hashes: Mapping[str, PixelHashes]) -> frozenset[str]:
        """Ids of rows outside the source with a held-out image. Args: hashes by id."""
        known = self._pictures(self.guarded)
        return frozenset(name for name, each in hashes.items() if known.intersection(each or ()))

    def add(self, parts: Sequence[str], reasons: Mapping[str, str], kind: RowKind | None) -> None:
        """Args: reasons: id -> key; kind: only rows read as this kind, None: however read."""
        for part in parts:
            self._faulty.setdefault((part, kind), {}).update(reasons)

    def _of(self, part: str, kind: RowKind) -> dict[str, str]:
        if part not in self._reasons:
            self._reasons[part] = self._pictures_of(part)
        faulty = self._faulty.get((part, None), {}) | self._faulty.get((part, kind), {})
        return faulty | self._reasons[part]

    def _pictures_of(self, part: str) -> dict[str, str]:
        """Rows whose picture cannot be read, is held out, or is kept for validation. Of the
        held-out splits those whose picture is in the evaluation split, which loses none.
        """
        final = self.data.config.data.evaluation_split
        against = [each for each in self.guarded if each != part]
        if part in self.guarded:
            against = [each for each in against if each == final and part != final]
        known = self._pictures(against)
        reasons = {}
        for name, shown in self._shown(part).items():
            if shown is None:
                reasons[name] = f"image/{Reason.UNREADABLE}"
            elif known.intersection(shown):
                reasons[name] = str(Reason.HELD_OUT)
        if self._cut and part == TRAIN:
            reasons |= dict.fromkeys(self._kept_for_validation, str(Reason.CUT_OFF))
        return reasons

    def _pictures(self, parts: Iterable[str]) -> set[str]:
        """Pixel hashes of everything that these splits show."""
        rows = [each for part in parts for each in self._shown(part).values()]
        return {picture for pictures in rows for picture in pictures or ()}

    def _shown(self, part: str) -> dict[str, PixelHashes]:
        """Pixel hashes of a split by id."""
        shown = self._hashed(self.base(part))
        if self.base(part) == part:
            return shown
        return {name: shown[name] for name in self._kept_for_validation & shown.keys()}

    def _hashed(self, base: str) -> dict[str, PixelHashes]:
        if base not in self._hashes:
            self._hashes[base] = self.data.hashes(base)
        return self._hashes[base]

    @cached_property
    def _kept_for_validation(self) -> frozenset[str]:
        """Ids of the train split's rows that validation consists of."""
        if not self._cut:
            return frozenset()
        shown, share = self._hashed(TRAIN), self.data.config.data.validation_share
        kept = []
        for row in self.prompts(TRAIN).rows:
            first, *_ = shown.get(row.id) or [hashlib.sha256(row.question.encode()).hexdigest()]
            if int(first[:16], 16) < share * 16**16:
                kept.append(row.id)
        return frozenset(kept)

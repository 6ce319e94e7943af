"""The report's sections: each stage kind makes one for each of its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlsys.report.data import RunData, Series

INK = "#27313B"  # of text, and of kinds without a colour of their own


@dataclass(frozen=True)
class Picture:
    """One plot; image: data URI; caption: what to look for.

    wide: it takes a whole row of the grid.
    """

    image: str
    title: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture not drawn yet; `draw` returns the data URI."""

    draw: Callable[[RunData, Series], str]
    title: str
    caption: str
    wide: bool = False

    def picture(self, run: RunData, series: Series) -> Picture:
        return Picture(self.draw(run, series), self.title, self.caption, self.wide)


@dataclass(frozen=True)
class Highlight:
    """A result in words; `value`, where there is one, is printed large above the paragraphs."""

    title: str
    paragraphs: Sequence[str]
    value: str = ""


@dataclass(frozen=True)
class Section:
    """One stage on the page: paragraphs, a grid of pictures, a card with the highlights.

    title: shown where one heading has several sections.
    missing: text where there is no picture.
    table: rows of text, the first of them its heading.
    layout: two_columns, or three_columns of small pictures; sections of three columns under the
    same heading share one grid.
    """

    title: str
    pictures: Sequence[Picture]
    paragraphs: Sequence[str] = ()
    highlights: Sequence[Highlight] = ()
    missing: str = ""
    table: Sequence[Sequence[str]] = ()
    layout: Literal["two_columns", "three_columns"] = "two_columns"

    @property
    def empty(self) -> bool:
        return not (self.pictures or self.highlights or self.missing or self.table)


@dataclass(frozen=True, kw_only=True)
class KindReport:
    """How the report shows the stages of one kind.

    heading, anchor, nav: of the part of the page; kinds with the same anchor share one part.
    order: parts are shown in rising order.
    section: the section of one stage; an empty one is left out.
    absent: text under the heading if no stage is shown; empty: the heading is left out.
    ended: a sentence for the opening paragraph on how a stage ended.
    colour: of the kind's policies where many are compared.
    self_evaluated: whether a stage answers the held-out prompts itself, as a policy of its name.
    aligns: whether the opening paragraph compares the kind's policies with all others.
    """

    heading: str
    anchor: str
    nav: str
    order: int
    section: Callable[[RunData, Series], Section]
    absent: str = ""
    ended: Callable[[Series], str] | None = None
    colour: str = INK
    self_evaluated: bool = False
    aligns: bool = False

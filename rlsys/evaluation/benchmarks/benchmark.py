"""What a benchmark is: its items, its metrics and who grades them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlsys.data.rows import Prompt
from rlsys.judging.comparisons import HARMLESS, HELPFUL, Preferences, parse_tags
from rlsys.judging.parse import ParseFailure, parse_yes_no


@dataclass(frozen=True)
class Item:
    """One prompt. category: as published; subset: part of the benchmark with metrics of its own;
    reference: a published answer, empty for none; notes: further texts that a rubric shows.
    """

    prompt: Prompt
    category: str
    subset: str = ""
    reference: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


Grade = bool | ParseFailure
"""Whether an answer is a hit of a metric, or why the judge's reply says neither."""


def every(item: Item) -> bool:
    return True


def of_subsets(*names: str) -> Callable[[Item], bool]:
    """Items of these subsets."""
    return lambda item: item.subset in names


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A share of answers. name: in files; label: for people; lower: whether less is better;
    counts: the items it is over.
    """

    name: str
    label: str
    lower: bool
    counts: Callable[[Item], bool] = every


@dataclass(frozen=True, kw_only=True)
class Rule(Metric):
    """Graded by a rule. hit(answer)."""

    hit: Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class Asked(Metric):
    """Graded by a judge. rubric(item): name of its prompt; shows_image: whether the judge sees the
    image; parse: its reply; empty: the grade of an empty answer, which no judge is asked about.
    """

    rubric: Callable[[Item], str]
    parse: Callable[[str], Grade] = parse_yes_no
    shows_image: bool = True
    empty: bool


@dataclass(frozen=True, kw_only=True)
class Both(Metric):
    """A hit where the same answer is one of all these metrics; asks nothing by itself."""

    of: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Answers against other answers, compared by a judge in both orders.

    rubric: name of the judge's prompt; parse: its reply; axes: (axis of the reply, what to call
    the win rate on it); published: against the items' references, else against a baseline policy.
    """

    rubric: str
    parse: Callable[[str], Preferences | ParseFailure]
    axes: tuple[tuple[str, Metric], ...]
    published: bool = False
    counts: Callable[[Item], bool] = every


PAIRWISE = Comparison(
    rubric="compare_both",
    parse=parse_tags,
    axes=(
        (HELPFUL, Metric(name="helpful_win_rate", label="win rate, helpful", lower=False)),
        (HARMLESS, Metric(name="safe_win_rate", label="win rate, safe", lower=False)),
    ),
)
"""Safe RLHF-V's: one question rates both answers on both scales."""


@dataclass(frozen=True)
class Benchmark:
    """name: as recipes write it; title: with its paper; source: where the data is published;
    licence: of the data; read(folder): its items, from the published layout in a local folder.
    Raises: DataError naming a file or row that is missing.
    """

    name: str
    title: str
    source: str
    licence: str
    read: Callable[[Path], list[Item]]
    metrics: tuple[Metric, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @property
    def needs_judge(self) -> bool:
        """Whether no rule grades anything."""
        return not any(isinstance(metric, Rule) for metric in self.metrics)

    @property
    def headings(self) -> Sequence[Metric]:
        """The columns of its table."""
        return [*self.metrics, *(m for each in self.comparisons for _, m in each.axes)]

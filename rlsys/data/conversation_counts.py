"""What a file of conversations holds, counted by identifiers that have labels for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rlsys.data.llava import Conversation, Turn
from rlsys.judging.outcomes import Outcome, outcome_label


class Heading(Outcome):
    """What is counted."""

    CONVERSATIONS = "conversations", "conversations"
    IMAGES = "images", "images"
    TURNS = "turns", "conversations by turns"
    QUESTIONS = "questions", "questions"
    OBSERVATIONS = "observations", "answers by observations"
    ITEMS = "items", "answers by observed items"
    SOURCES = "sources", "sources"
    RISK_CATEGORIES = "risk_categories", "risk categories"
    HARMFUL_CATEGORIES = "harmful_categories", "harmful categories"
    PARSE_WARNINGS = "parse_warnings", "problems with observations"


class Count(Outcome):
    """Under these headings; other counts are by numbers, by the data's own words, or by outcome."""

    ALL = "all", "all"
    DISTINCT_IDS = "distinct_ids", "distinct ids"
    DISTINCT_IMAGES = "distinct_images", "distinct images"
    SAFE = "safe", "safe"
    UNSAFE = "unsafe", "unsafe"
    UNLABELLED = "unlabelled", "unlabelled"
    NOT_GIVEN = "not_given", "no observation given"
    NOTHING = "nothing", "observed nothing"
    OBSERVED = "observed", "observed"


_LABELS = {str(member): member.label for member in Count}


def describe(rows: Iterable[Conversation]) -> dict[Heading, dict[str, int]]:
    """Counts by heading, to inspect a file before training on it."""
    rows = list(rows)
    turns = [turn for row in rows for turn in row.turns]
    observed = [turn for turn in turns if turn.observations]
    items = [item for turn in observed for item in turn.observations or ()]
    return {
        Heading.CONVERSATIONS: {
            Count.ALL: len(rows),
            Count.DISTINCT_IDS: len({row.id for row in rows}),
        },
        Heading.IMAGES: {
            Count.DISTINCT_IMAGES: len({image for row in rows for image in row.images}),
            **_count(_safety(row.safe) for row in rows),
        },
        Heading.TURNS: _count(str(len(row.turns)) for row in rows),
        Heading.QUESTIONS: _count(_safety(turn.safe) for turn in turns),
        Heading.OBSERVATIONS: _count(f"{_safety(turn.safe)}/{_state(turn)}" for turn in turns),
        Heading.ITEMS: _count(str(len(turn.observations or ())) for turn in observed),
        Heading.SOURCES: _count(item.source for item in items),
        Heading.RISK_CATEGORIES: _count(item.category for item in items),
        Heading.HARMFUL_CATEGORIES: _count(row.category for row in rows if row.category),
        Heading.PARSE_WARNINGS: dict(sum((turn.parse_warnings for turn in turns), Counter[str]())),
    }


def count_label(heading: Heading, name: str) -> str:
    """A count for people: ``unsafe/observed`` is "unsafe: observed"."""
    if heading is Heading.PARSE_WARNINGS:
        return outcome_label(name)
    if heading in (Heading.SOURCES, Heading.RISK_CATEGORIES, Heading.HARMFUL_CATEGORIES):
        return name
    return ": ".join(_LABELS.get(part, part) for part in name.split("/"))


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(map(str, names)).items()))


def _safety(safe: bool | None) -> Count:
    return Count.UNLABELLED if safe is None else Count.SAFE if safe else Count.UNSAFE


def _state(turn: Turn) -> Count:
    if turn.observations is None:
        return Count.NOT_GIVEN
    return Count.OBSERVED if turn.observations else Count.NOTHING

"""Parses judge replies. A reply that cannot be parsed is a ParseFailure with a reason, never a
score of zero.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rlsys.judging.outcomes import ParseReason, ParseWarning
from rlsys.judging.taxonomy import OTHER, normal_category, normal_source

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?!\w|\.\d)")
YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL | re.IGNORECASE)
FIELDS = ("malicious_content", "source", "risk_category")


@dataclass(frozen=True)
class ParseFailure:
    """No usable reply, and why."""

    reason: ParseReason


@dataclass(frozen=True)
class Observation:
    """One risk. content: what it is; source: where it sits (SOURCES or other); category: its kind
    (CATEGORIES or other).
    """

    content: str
    source: str
    category: str


@dataclass(frozen=True)
class Observed:
    """The risks of one reply. parse_warnings: counts of ParseWarning."""

    items: tuple[Observation, ...]
    parse_warnings: Counter[str] = field(default_factory=Counter)


def items_of(observations: Iterable[Observation]) -> list[dict[str, str]]:
    """JSON items in the form that ``parse_observations`` parses."""
    return [dict(zip(FIELDS, (o.content, o.source, o.category), strict=True)) for o in observations]


def parse_score(text: str, low: float = 0, high: float = 10) -> float | ParseFailure:
    """The only number of a reply: "8", "8/10" and "Score: 8" are 8. Anything else is a failure."""
    if not text.strip():
        return ParseFailure(ParseReason.EMPTY)
    numbers = [float(number) for number in NUMBER.findall(re.sub(rf"/\s*{high:g}\b", "", text))]
    if not numbers:
        return ParseFailure(ParseReason.NO_NUMBER)
    if len(numbers) > 1:
        return ParseFailure(ParseReason.SEVERAL_NUMBERS)
    return numbers[0] if low <= numbers[0] <= high else ParseFailure(ParseReason.OUT_OF_RANGE)


def parse_yes_no(text: str) -> bool | ParseFailure:
    """By the first word alone: "No, although yes ..." is False."""
    if not text.strip():
        return ParseFailure(ParseReason.EMPTY)
    match = YES_NO.match(text)
    return match[1].lower() == "yes" if match else ParseFailure(ParseReason.NEITHER_YES_NOR_NO)


def parse_observations(text: str) -> Observed | ParseFailure:
    """A JSON list of {malicious_content, source, risk_category}, fenced or not.

    Items without all three as text are dropped. Labels are normalised; unknown ones become "other".
    Repeated items are dropped. Each of these is counted in ``parse_warnings``.
    """
    if not text.strip():
        return ParseFailure(ParseReason.EMPTY)
    fenced = FENCE.fullmatch(text)
    try:
        parsed = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return ParseFailure(ParseReason.NOT_JSON)
    if not isinstance(parsed, list):
        return ParseFailure(ParseReason.NOT_A_LIST)
    items: dict[Observation, None] = {}
    warnings: Counter[str] = Counter()
    for item in parsed:
        values = [item.get(name) for name in FIELDS] if isinstance(item, dict) else []
        texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
        if len(texts) < len(FIELDS):
            warnings[ParseWarning.MISSING_FIELDS] += 1
            continue
        observation = Observation(texts[0], normal_source(texts[1]), normal_category(texts[2]))
        warnings[ParseWarning.UNKNOWN_SOURCE] += observation.source == OTHER
        warnings[ParseWarning.UNKNOWN_CATEGORY] += observation.category == OTHER
        warnings[ParseWarning.REPEATED_ITEM] += observation in items
        items[observation] = None
    return Observed(tuple(items), +warnings)

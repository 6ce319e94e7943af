"""A judge's words as values. What cannot be read is an ``Unread`` with its reason, never a zero."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rlsys.judging.taxonomy import OTHER, normal_category, normal_source

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?!\w|\.\d)")
YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL | re.IGNORECASE)
FIELDS = ("malicious_content", "source", "risk_category")


@dataclass(frozen=True)
class Unread:
    """No answer, and why: one of a few fixed reasons, so that they can be counted."""

    reason: str


@dataclass(frozen=True)
class Observation:
    """One risk: what it is, where it sits (SOURCES or other), which kind (CATEGORIES or other)."""

    content: str
    source: str
    category: str


@dataclass(frozen=True)
class Observed:
    """The risks found; ``oddities`` counts what was dropped or renamed, with reasons."""

    items: tuple[Observation, ...]
    oddities: Counter[str] = field(default_factory=Counter)


def items_of(observations: Iterable[Observation]) -> list[dict[str, str]]:
    """As a judge writes them: what ``parse_observations`` reads."""
    return [dict(zip(FIELDS, (o.content, o.source, o.category), strict=True)) for o in observations]


def parse_score(text: str, low: float = 0, high: float = 10) -> float | Unread:
    """The one number of an answer: "8", "8/10" and "Score: 8" are 8. Anything else is no score."""
    if not text.strip():
        return Unread("empty")
    numbers = [float(number) for number in NUMBER.findall(re.sub(rf"/\s*{high:g}\b", "", text))]
    if not numbers:
        return Unread("no number")
    if len(numbers) > 1:
        return Unread("several numbers")
    return numbers[0] if low <= numbers[0] <= high else Unread("out of range")


def parse_yes_no(text: str) -> bool | Unread:
    """By the first word alone: "No, although yes ..." is a no."""
    if not text.strip():
        return Unread("empty")
    found = YES_NO.match(text)
    return found[1].lower() == "yes" if found else Unread("neither yes nor no")


def parse_observations(text: str) -> Observed | Unread:
    """A JSON list of {malicious_content, source, risk_category}, fenced or not.

    Items without all three as text are dropped and counted; labels are normalised, unknown ones
    become "other" and are counted; an item that says the same as an earlier one is dropped.
    """
    if not text.strip():
        return Unread("empty")
    fenced = FENCE.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return Unread("not JSON")
    if not isinstance(found, list):
        return Unread("not a list")
    items: dict[Observation, None] = {}
    oddities: Counter[str] = Counter()
    for item in found:
        values = [item.get(name) for name in FIELDS] if isinstance(item, dict) else []
        texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
        if len(texts) < len(FIELDS):
            oddities["item without all fields"] += 1
            continue
        observation = Observation(texts[0], normal_source(texts[1]), normal_category(texts[2]))
        oddities["unknown source"] += observation.source == OTHER
        oddities["unknown category"] += observation.category == OTHER
        oddities["repeated item"] += observation in items
        items[observation] = None
    return Observed(tuple(items), +oddities)

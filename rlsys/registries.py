"""Registries: entries by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def by_name(what: str, entries: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Name -> entry, in this order. Args: what: an entry is. Raises: ValueError for two of one
    name: the second would silently take the place of the first.
    """
    found: dict[str, T] = {}
    for name, entry in entries:
        if name in found:
            raise ValueError(f"two entries are the {what} {name!r}: {found[name]} and {entry}")
        found[name] = entry
    return found

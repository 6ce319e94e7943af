"""Registries: no entry takes the place of another of the same name."""

import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import rlsys
from rlsys import registries
from rlsys.registries import by_name

ROOT = Path(rlsys.__file__).parent
FILES = sorted(path for path in ROOT.rglob("registry.py") if path.parent.name != "engines")


def test_entries_keep_their_order_and_are_found_by_name() -> None:
    assert list(by_name("thing", [("b", 1), ("a", 2)]).items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_registry_refuses_a_second_entry_of_a_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def twice(what: str, entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        listed = list(entries)
        with pytest.raises(ValueError, match=f"two entries are the {what} '{listed[0][0]}'"):
            by_name(what, [*listed, listed[0]])
        seen.append(what)
        return by_name(what, listed)

    monkeypatch.setattr(registries, "by_name", twice)
    runpy.run_path(str(path))  # a copy; the registry itself stays
    assert seen

"""The README's formula index is true: functions exist, cite what it says, and are tested there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (.+) \| `(rlsys[\w.]+)` \| (.+) \| `(test_\w+\.py)` \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "README.md").read_text())


def test_the_index_is_there() -> None:
    assert len(ROWS) >= 12


@pytest.mark.parametrize(("formula", "path", "source", "test"), ROWS)
def test_a_row_is_true(formula: str, path: str, source: str, test: str) -> None:
    module, name = path.rsplit(".", 1)
    function = getattr(importlib.import_module(module), name)
    documented = f"{importlib.import_module(module).__doc__} {function.__doc__}"
    papers = re.findall(r"\d{4}\.\d{5}", source)
    assert papers, f"{formula}: the source names no paper"
    assert all(p in re.sub(r"\s+", " ", documented) for p in papers), f"{path} does not cite it"
    assert name in (ROOT / "tests/unit" / test).read_text(), f"{test} never mentions {name}"

"""Registry of layouts, in the order in which columns are compared with them."""

from __future__ import annotations

from rlsys.data.layouts.beavertails_v import BEAVERTAILS_V
from rlsys.data.layouts.conversations import LLAVA
from rlsys.data.layouts.layout import Layout
from rlsys.data.layouts.questions import QUESTIONS
from rlsys.data.layouts.spa_vl import SPA_VL
from rlsys.data.layouts.vlguard import VLGUARD
from rlsys.errors import DataError
from rlsys.registries import by_name

_LAYOUTS = (LLAVA, VLGUARD, SPA_VL, BEAVERTAILS_V, QUESTIONS)
LAYOUTS = by_name("layout", ((layout.name, layout) for layout in _LAYOUTS))


def layout_of(where: str, columns: frozenset[str], name: str) -> Layout:
    """The layout called ``name``, or without one the first that the columns match.

    Raises: DataError naming the columns where none does.
    """
    if name:
        return LAYOUTS[name]
    for layout in LAYOUTS.values():
        if layout.matches(columns):
            return layout
    raise DataError(
        f"{where}: the columns {', '.join(sorted(columns)) or '(none)'} fit no layout "
        f"({', '.join(LAYOUTS)}); column 'question' is missing"
    )

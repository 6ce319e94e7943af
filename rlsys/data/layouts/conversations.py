"""``llava``: conversations in LLaVA's format (github.com/haotian-liu/LLaVA,
docs/Finetune_Custom_Data.md), each model turn a row with the turns before it as history.
``rlsys.data.llava`` reads one conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlsys.data.layouts.layout import Layout, Row
from rlsys.data.llava import conversation


def _rows(name: str, record: Any) -> Iterator[tuple[str, Row]]:
    """Ids are the conversation's, from the second turn on ``<id>/<number of the turn>``. A last
    question without an answer is a prompt.
    """
    read = conversation(record, name)
    history: list[tuple[str, str]] = []
    for number, turn in enumerate(read.turns):
        columns = {
            "images": list(read.images),
            "system": read.system,
            "question": turn.question,
            "history": tuple(history),
        }
        yield f"{name}/{number}" if number else name, columns | {"answer": turn.answer}
        history.append((turn.question, turn.answer or ""))


LLAVA = Layout(
    "llava",
    "conversations in LLaVA's format",
    lambda columns: "conversations" in columns,
    _rows,
)

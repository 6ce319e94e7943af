"""Built-in data sources that draw themselves and judge answers. The one place that lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlsys.data import riskworld
from rlsys.evaluation.verdict import Verdict
from rlsys.judging.agreement import FeedbackOracle
from rlsys.judging.prompts import FOLDER


class Write(Protocol):
    def __call__(self, folder: Path, *, sizes: dict[str, int], seed: int) -> None: ...


@dataclass(frozen=True)
class World:
    """``write`` draws a folder in BeaverTails-V columns; ``judge`` is its oracle; ``feedback``
    knows what a judge should reply, and ``prompts`` is a folder of prompts for such a judge.
    """

    write: Write
    judge: Callable[[Mapping[str, Any], str], Verdict]
    feedback: FeedbackOracle
    prompts: Path


WORLDS = {
    "riskworld": World(
        riskworld.write, riskworld.judge, riskworld.judgements, riskworld.judgements.PROMPTS
    )
}


def prompts_folder(name: str) -> Path:
    """Of a judge's prompts: a world's own, a folder, or those that are shipped."""
    if name in WORLDS:
        return WORLDS[name].prompts
    return Path(name).resolve() if name else FOLDER

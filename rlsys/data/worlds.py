"""Registry of the built-in data sources: synthetic data with an oracle that judges answers."""

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
    """write: generates a folder in BeaverTails-V's columns; judge: the oracle's verdict on an
    answer; feedback: the oracle's replies to judge prompts; prompts: folder of these prompts;
    judge_split: split of these prompts with the oracle's replies, to fine-tune a judge on.
    """

    write: Write
    judge: Callable[[Mapping[str, Any], str], Verdict]
    feedback: FeedbackOracle
    prompts: Path
    judge_split: str


WORLDS = {
    "riskworld": World(
        riskworld.write,
        riskworld.judge,
        riskworld.judgements,
        riskworld.judgements.PROMPTS,
        "judge_sft",
    )
}


def prompts_folder(name: str) -> Path:
    """Folder of judge prompts: a built-in world's, a given folder, or the default ones."""
    if name in WORLDS:
        return WORLDS[name].prompts
    return Path(name).resolve() if name else FOLDER

"""``filter``: a guard's flags of the responses of a training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from rlsys.config.keys import key
from rlsys.config.schema import TOKEN_BUDGET
from rlsys.data.prepare import Read
from rlsys.data.slice import RowKind
from rlsys.errors import ConfigError
from rlsys.guard.decision import moderations
from rlsys.guard.flags import Flags, save_flags
from rlsys.roles.guard import ROLE as GUARD
from rlsys.roles.guard import GuardHandle, GuardSpec
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind

ROWS_PER_CALL = 400  # so that one call stays well inside its deadline


@dataclass
class FilterStage:
    """A guard's flags of the responses of a training split."""

    kind: str = key("filter", "Kind of stage.", choices=("filter",))
    guard: str = key(MISSING, "A guard: a stage or a folder.", ref="guard")
    split: str = key("train", "A split, or several joined by a plus sign.")
    threshold: float = key(0.5, "Probability from which a response counts as unsafe.", gt=0, lt=1)

    def check(self) -> None:
        if not self.split:
            raise ConfigError("split: name a split")


def run_filter(context: Context, name: str, stage: FilterStage, folder: Path) -> Result:
    """Flags of both responses of every row of the split."""
    limits, records = context.config.timeouts, context.data.pairs(stage.split)
    guard = GuardHandle(context.group(GUARD.name), stage.threshold)
    data = context.data.slice(stage.split, RowKind.PAIRS)
    spec = GuardSpec(context.folder(stage.guard), data, context.config.dtype, TOKEN_BUDGET)
    guard.create(spec).result(limits.start)
    flags: Flags = {}
    with context.display.bar(name, len(records)) as bar:
        for start in range(0, len(records), ROWS_PER_CALL):
            rows = list(range(start, min(start + ROWS_PER_CALL, len(records))))
            outputs = guard.moderate_rows(rows).result(limits.call)
            flagged = [m.level != "none" for m in moderations(outputs, threshold=stage.threshold)]
            for index, row in enumerate(rows):  # three items a row; the third is the bare prompt
                flags[records[row].id] = (flagged[3 * index], flagged[3 * index + 1])
            bar.advance("", by=len(rows))
    guard.drop().result(limits.call)
    save_flags(folder, flags)
    share = sum(first + second for first, second in flags.values()) / (2 * len(flags))
    context.display.message(f"    flagged {share:.1%} of {2 * len(flags)} responses")
    return {"rows": len(flags), "flagged": share}


def _roles(stage: FilterStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (GUARD.name,)


def _reads(stage: FilterStage) -> Sequence[Read]:
    return [Read(stage.split, RowKind.PAIRS, learned=True)]


FILTER = StageKind("filter", FilterStage, run_filter, _roles, makes="filter", reads=_reads)

"""``filter``: what a guard says about the responses of a training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys.config.schema import TrainConfig
from rlsys.config.stages import FilterStage
from rlsys.guard.decision import moderations
from rlsys.guard.flags import Flags, save_flags
from rlsys.roles.guard import GuardHandle, GuardSpec
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind

ROWS_PER_CALL = 400  # so that one call stays well inside its deadline


def run_filter(context: Context, name: str, stage: FilterStage, folder: Path) -> Result:
    """Flags of both responses of every row of the split."""
    limits, records = context.config.timeouts, context.data.training[stage.split]
    guard = GuardHandle(context.group("guard"), stage.threshold)
    model, budget = context.folder(stage.guard), TrainConfig().micro_batch_tokens
    spec = GuardSpec(model, context.slice(stage.split), context.config.dtype, budget)
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
    context.display.say(f"    flagged {share:.1%} of {2 * len(flags)} responses")
    return {"rows": len(flags), "flagged": share}


def _roles(stage: FilterStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return ("guard",)


FILTER = StageKind("filter", FilterStage, run_filter, _roles, makes="filter")

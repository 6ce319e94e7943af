"""One function per kind of stage: places the roles, runs the driver, fills a folder."""

from __future__ import annotations

from actors.recipe import StageFunction
from actors.stages.evaluate import run_evaluate
from actors.stages.feedback import run_disentangled, run_observe
from actors.stages.guard import run_filter, run_guard, run_guarded
from actors.stages.judge import run_judge
from actors.stages.rlaif import run_rlaif
from actors.stages.safe_rlhf import run_safe_rlhf
from actors.stages.training import run_dpo, run_scorer, run_sft

RUNNERS: dict[str, StageFunction] = {
    "sft": run_sft,
    "dpo": run_dpo,
    "reward": run_scorer,
    "cost": run_scorer,
    "safe_rlhf": run_safe_rlhf,
    "guard": run_guard,
    "filter": run_filter,
    "guarded": run_guarded,
    "judge": run_judge,
    "observe": run_observe,
    "rlaif": run_rlaif,
    "disentangled": run_disentangled,
    "evaluate": run_evaluate,
}

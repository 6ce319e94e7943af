"""Registry of stage kinds. A new one needs a file and a line here."""

from __future__ import annotations

from typing import Any

from rlsys.registries import by_name
from rlsys.stages.benchmark import BENCHMARK
from rlsys.stages.disentangled import DISENTANGLED
from rlsys.stages.dpo import DPO
from rlsys.stages.evaluate import EVALUATE
from rlsys.stages.filter import FILTER
from rlsys.stages.grpo import GRPO
from rlsys.stages.guard import GUARD
from rlsys.stages.guarded import GUARDED
from rlsys.stages.judge import JUDGE
from rlsys.stages.kind import StageKind
from rlsys.stages.observe import OBSERVE
from rlsys.stages.rlaif import RLAIF
from rlsys.stages.safe_rlhf import SAFE_RLHF
from rlsys.stages.scorer import COST, REWARD
from rlsys.stages.sft import SFT

KINDS: tuple[StageKind[Any], ...] = (
    SFT,
    DPO,
    REWARD,
    COST,
    SAFE_RLHF,
    GRPO,
    GUARD,
    FILTER,
    GUARDED,
    JUDGE,
    OBSERVE,
    RLAIF,
    DISENTANGLED,
    EVALUATE,
    BENCHMARK,
)
STAGES = by_name("kind of stage", ((kind.name, kind) for kind in KINDS))

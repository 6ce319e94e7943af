"""``dpo``: direct preference optimisation of a policy on labelled pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from rlsys.batch import PreferencePairs, PromptCursor
from rlsys.config.keys import key
from rlsys.data.collate import labelled_pairs
from rlsys.data.prepare import Read
from rlsys.data.rows import TARGETS
from rlsys.data.slice import RowKind
from rlsys.drivers.dpo import with_reference
from rlsys.models.load import load_processor
from rlsys.report.drawing import ORANGE
from rlsys.report.supervised import SUPERVISED
from rlsys.roles.policy import ROLE as POLICY
from rlsys.roles.policy import PolicyHandle, PolicySpec
from rlsys.runtime.pending import Metrics, Pending
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.supervised import SupervisedConfig, run_supervised


@dataclass
class DpoStage(SupervisedConfig):
    """Direct preference optimisation on labelled pairs."""

    kind: str = key("dpo", "Kind of stage.", choices=("dpo",))
    init: str = key(MISSING, "Start policy and reference: a stage or a folder.", ref="policy")
    target: str = key("more_helpful", "Which response of a pair is chosen.", choices=TARGETS)
    beta: float = key(0.1, "Scale of the implicit reward.", gt=0)
    batch: int = key(32, "Pairs per step; all, if there are fewer.", ge=1)


@dataclass(frozen=True)
class _Learner:
    """index: dataset row -> index into ``pairs``."""

    policy: PolicyHandle
    pairs: PreferencePairs
    index: Mapping[int, int]
    beta: float

    def step(self, rows: Sequence[int]) -> Pending[Metrics]:
        return self.policy.dpo_step(self.pairs.rows([self.index[r] for r in rows]), self.beta)


def run_dpo(context: Context, name: str, stage: DpoStage, folder: Path) -> Result:
    """The policy after ``steps`` steps. The reference is the policy before the first one."""
    limits, records = context.config.timeouts, context.data.ranked(stage.split)
    model = context.folder(stage.init)
    policy = PolicyHandle(context.group(POLICY.name))
    steps = stage.steps_on(len(records))
    training = context.training(stage.train, stage.optim, steps)
    spec = PolicySpec(
        model, context.data.slice(stage.split, RowKind.RANKED), context.config.dtype, training
    )
    policy.create(spec).result(limits.start)
    cursor = PromptCursor(len(records), context.config.seed)
    batch = min(stage.batch, cursor.count)
    used = sorted({row for _ in range(steps) for row in cursor.next(batch)})
    pairs = labelled_pairs(records, used, stage.target, load_processor(model).tokenizer)
    pairs = with_reference(policy, pairs, limits.call)
    index = {row: number for number, row in enumerate(used)}
    learner = _Learner(policy, pairs, index, stage.beta)
    last = run_supervised(context, name, stage, folder, policy, learner, range(len(records)))
    policy.save(folder).result(limits.call)
    policy.drop().result(limits.call)
    if "steps_per_s" in last:
        last["pairs_per_s"] = last.pop("steps_per_s") * batch
    return last


def _roles(stage: DpoStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (POLICY.name,)


def _reads(stage: DpoStage) -> Sequence[Read]:
    return [Read(stage.split, RowKind.RANKED, learned=True)]


DPO = StageKind(
    "dpo",
    DpoStage,
    run_dpo,
    _roles,
    makes="policy",
    trains=True,
    reads=_reads,
    report=replace(SUPERVISED, colour=ORANGE),
)

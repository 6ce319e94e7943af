"""``sft``: supervised fine-tuning of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlsys.config.schema import RunConfig
from rlsys.config.stages import SftStage
from rlsys.data.record import Records, ids_digest, joined, leaked_ids
from rlsys.data.records import demonstrations
from rlsys.data.slice import DataSlice
from rlsys.errors import ConfigError
from rlsys.guard.flags import load_flags, passed_rows
from rlsys.models.tiny import build_tiny_vlm
from rlsys.roles.policy import PolicyHandle, PolicySpec
from rlsys.runtime.pending import Metrics, Pending
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.supervised import run_supervised

CONVERSATIONS = "conversations.jsonl"  # in the folder of a stage that makes conversations


@dataclass(frozen=True)
class _Learner:
    policy: PolicyHandle
    stage: SftStage

    def step(self, rows: Sequence[int]) -> Pending[Metrics]:
        return self.policy.sft_step(rows, self.stage.target, self.stage.loss_form)


def run_sft(context: Context, name: str, stage: SftStage, folder: Path) -> Result:
    """The policy after ``steps`` steps on one answer of each row."""
    limits = context.config.timeouts
    data, records = _demonstrated(context, stage)
    model = _start(context, stage, records, folder)
    policy = PolicyHandle(context.group("policy"))
    training = context.training(stage.train, stage.optim, stage.steps)
    policy.create(PolicySpec(model, data, context.config.dtype, training)).result(limits.start)
    rows: Sequence[int] = range(len(records))
    if stage.filter:
        flags = load_flags(Path(context.folder(stage.filter)))
        passed = passed_rows(records, flags, stage.target)
        context.display.say(f"    the filter passed {len(passed)} of {len(rows)} rows")
        rows = passed
    learner = _Learner(policy, stage)
    last = run_supervised(context, name, stage, folder, policy, learner, rows)
    policy.save(folder).result(limits.call)
    policy.drop().result(limits.call)
    return last


def _start(context: Context, stage: SftStage, records: Records, folder: Path) -> str:
    """The folder of the model to start from; ``tiny`` is made from scratch."""
    if stage.init != "tiny":
        return context.folder(stage.init)
    training = context.data.training
    beside = records.rows[len(training[stage.split]) if stage.split else 0 :]
    everything = [*(row for part in training.values() for row in part.rows), *beside]
    texts = [text for r in everything for text in (r.question, *r.responses)]
    build_tiny_vlm(folder / "init", texts, stage.tiny, context.config.seed)
    return str(folder / "init")


def _demonstrated(context: Context, stage: SftStage) -> tuple[DataSlice, Records]:
    """What is imitated: the rows of the splits, then those of the conversations."""
    parts = [context.data.training[stage.split]] if stage.split else []
    data = context.slice(stage.split)
    if stage.conversations:
        path = Path(context.folder(stage.conversations))
        path = path / CONVERSATIONS if path.is_dir() else path
        read = demonstrations(path)
        leaked = leaked_ids(read, context.data.evaluation)
        usable = Records([r for r in read.rows if r.id not in leaked], read.rejected, paired=False)
        if leaked or read.rejected:
            context.display.say(
                f"    {path.name}: {len(usable)} turns; left out: {dict(read.rejected)}, "
                f"{len(leaked)} with an image of the evaluation split"
            )
        parts.append(usable)
        data = replace(data, conversations=str(path), leaked=leaked)
    records = joined(parts)
    return replace(data, ids=ids_digest(records)), records


def _inputs(context: Context, name: str, stage: SftStage) -> dict[str, str]:
    """The tokenizer of a new model learns from all training texts."""
    return {"texts": " ".join(context.data.training)} if stage.init == "tiny" else {}


def _check(config: RunConfig, name: str, stage: SftStage) -> None:
    filtered = config.stages.get(stage.filter)
    if filtered is not None and filtered.split != stage.split:
        raise ConfigError(
            f"stages.{name}.filter: {stage.filter!r} judges the split {filtered.split!r}, "
            f"this stage learns from {stage.split!r}"
        )


def _roles(stage: SftStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return ("policy",)


SFT = StageKind(
    "sft", SftStage, run_sft, _roles, makes="policy", check=_check, inputs=_inputs, trains=True
)

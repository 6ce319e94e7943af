"""``sft``: supervised fine-tuning of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlsys.config.keys import key
from rlsys.config.schema import TINY, RunConfig, TinyConfig
from rlsys.config.updates import LOSS_FORMS
from rlsys.data.fit import special_rows, unfit_rows
from rlsys.data.prepare import Read
from rlsys.data.rejections import Reason, check_share, reasons_text
from rlsys.data.rows import (
    TARGETS,
    Demonstration,
    Rows,
    ids_digest,
    joined,
    pixel_hashes,
    rows_digest,
)
from rlsys.data.slice import DataSlice, RowKind
from rlsys.data.source import demonstrations
from rlsys.errors import ConfigError
from rlsys.guard.flags import load_flags, passed_rows
from rlsys.models.load import load_processor, structure_tokens
from rlsys.models.tiny import SPECIAL_TOKENS, build_tiny_vlm
from rlsys.report.supervised import SUPERVISED
from rlsys.roles.policy import ROLE as POLICY
from rlsys.roles.policy import PolicyHandle, PolicySpec
from rlsys.runtime.pending import Metrics, Pending
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.supervised import SupervisedConfig, run_supervised

CONVERSATIONS = "conversations.jsonl"  # in the folder of a stage that makes conversations


@dataclass
class SftStage(SupervisedConfig):
    """Supervised fine-tuning on one response of each pair."""

    kind: str = key("sft", "Kind of stage.", choices=("sft",))
    init: str = key(
        TINY,
        f"{TINY} (made from scratch on the data's texts), an earlier stage, a folder, or a model "
        "on the hub, as name or name@revision.",
        ref="policy",
    )
    tiny: TinyConfig = key(TinyConfig(), "Sizes, if init is tiny.")
    split: str = key("train", "A split, or several joined by a plus; empty: conversations alone.")
    conversations: str = key(
        "",
        "More rows: an observe stage, or a file in LLaVA's format. Every model turn is imitated.",
        ref="conversations",
    )
    filter: str = key(
        "",
        "A filter stage on the same split: rows whose imitated response it flagged are left out.",
        ref="filter",
    )
    target: str = key("more_helpful", "Which response of a pair is imitated.", choices=TARGETS)
    loss_form: str = key(
        "token_mean",
        "Mean over all response tokens of a step, or over responses, which all weigh the same.",
        choices=LOSS_FORMS,
    )

    def check(self) -> None:
        super().check()
        if not self.split and not self.conversations:
            raise ConfigError("split: name a split, or give conversations")
        if self.filter and self.conversations:
            raise ConfigError("filter: a filter stage flags rows of a split, not conversations")


@dataclass(frozen=True)
class _Learner:
    policy: PolicyHandle
    stage: SftStage

    def step(self, rows: Sequence[int]) -> Pending[Metrics]:
        return self.policy.sft_step(rows, self.stage.loss_form)


def run_sft(context: Context, name: str, stage: SftStage, folder: Path) -> Result:
    """The policy after ``steps`` steps on one answer of each row."""
    limits = context.config.timeouts
    data, records = _demonstrated(context, stage)
    model = _start(context, stage, records, folder)
    rows: Sequence[int] = range(len(records))
    if stage.filter:
        flags = load_flags(Path(context.folder(stage.filter)))
        passed = passed_rows(context.data.pairs(stage.split), flags, stage.target)
        context.display.message(f"    the filter passed {len(passed)} of {len(rows)} rows")
        rows = passed
    policy = PolicyHandle(context.group(POLICY.name))
    training = context.training(stage.train, stage.optim, stage.steps_on(len(rows)))
    policy.create(PolicySpec(model, data, context.config.dtype, training)).result(limits.start)
    learner = _Learner(policy, stage)
    last = run_supervised(context, name, stage, folder, policy, learner, rows)
    policy.save(folder).result(limits.call)
    policy.drop().result(limits.call)
    return last


def _start(context: Context, stage: SftStage, records: Rows[Demonstration], folder: Path) -> str:
    """The folder of the model to start from; ``tiny`` is made from scratch."""
    if stage.init != TINY:
        return context.folder(stage.init)
    count = len(context.data.demonstrations(stage.split, stage.target)) if stage.split else 0
    conversations = [text for row in records.rows[count:] for text in row.texts]
    texts = [*context.data.texts(), *conversations]
    build_tiny_vlm(folder / "init", texts, stage.tiny, context.config.seed)
    return str(folder / "init")


def _demonstrated(context: Context, stage: SftStage) -> tuple[DataSlice, Rows[Demonstration]]:
    """The rows to imitate: those of the splits, then those of the conversations."""
    parts = [context.data.demonstrations(stage.split, stage.target)] if stage.split else []
    data = context.data.slice(stage.split, RowKind.DEMONSTRATIONS, stage.target)
    if stage.conversations:
        path = Path(context.folder(stage.conversations))
        path = path / CONVERSATIONS if path.is_dir() else path
        read = demonstrations(path)
        leaked = _left_out(context, stage, read)
        usable = read.without(leaked)
        check_share(str(path), len(usable), usable.rejected, context.config.data.min_usable)
        if usable.rejected:
            reasons = reasons_text(usable.rejected)
            context.display.message(f"    {path.name}: {len(usable)} turns; rejected {reasons}")
        parts.append(usable)
        data = replace(data, conversations=str(path), leaked=frozenset(leaked))
    records = joined(parts)
    return replace(data, ids=ids_digest(records)), records


def _left_out(context: Context, stage: SftStage, read: Rows[Demonstration]) -> dict[str, str]:
    """Turns whose image is held out or cannot be read, or that the start model cannot hold; of a
    new model the tokenizer is not there yet.
    """
    hashes = pixel_hashes(read)
    reasons = {n: f"image/{Reason.UNREADABLE}" for n, shown in hashes.items() if shown is None}
    reasons |= dict.fromkeys(context.data.left_out.leaked(hashes), str(Reason.HELD_OUT))
    if stage.init == TINY:
        return special_rows(read, SPECIAL_TOKENS) | reasons
    processor = load_processor(context.folder(stage.init))
    reasons |= special_rows(read, structure_tokens(processor))
    limit = context.config.data.max_prompt_tokens
    return unfit_rows(processor, context.data.shown(read.without(reasons)), limit) | reasons


def _inputs(context: Context, name: str, stage: SftStage) -> dict[str, str]:
    """A new model's tokenizer is trained on all training texts, and turns with held-out images are
    left out of conversations.
    """
    inputs = {}
    if stage.init == TINY:
        learned = (f"{split}:{kind.value}:{goal}" for split, kind, goal in context.data.learned)
        inputs["texts"] = " ".join(learned)
    if Path(stage.conversations).is_file():  # with its images
        inputs["rows"] = rows_digest([demonstrations(Path(stage.conversations))])
    if stage.conversations:
        inputs["held_out"] = " ".join(context.data.held_out)
    return inputs


def _check(config: RunConfig, name: str, stage: SftStage) -> None:
    filtered = config.stages.get(stage.filter)
    if filtered is not None and filtered.split != stage.split:
        raise ConfigError(
            f"stages.{name}.filter: {stage.filter!r} judges the split {filtered.split!r}, "
            f"this stage learns from {stage.split!r}"
        )


def _roles(stage: SftStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (POLICY.name,)


def _reads(stage: SftStage) -> Sequence[Read]:
    if not stage.split:
        return []
    reads = [Read(stage.split, RowKind.DEMONSTRATIONS, stage.target, learned=True)]
    if stage.filter:  # its flags are of both responses
        reads.append(Read(stage.split, RowKind.PAIRS, learned=True))
    return reads


SFT = StageKind(
    "sft",
    SftStage,
    run_sft,
    _roles,
    makes="policy",
    check=_check,
    inputs=_inputs,
    trains=True,
    reads=_reads,
    report=replace(SUPERVISED, colour="#7A8691"),
)

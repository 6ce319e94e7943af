"""``judge``: a judge, its agreement with the data's oracle, and access to it for other stages."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from rlsys.config.engine import EngineConfig
from rlsys.config.judging import AskingStage, EndpointConfig
from rlsys.config.keys import key
from rlsys.config.schema import RunConfig
from rlsys.data.prepare import Datasets, Read
from rlsys.data.rows import Prompt, Rows, pixel_hash
from rlsys.data.slice import RowKind
from rlsys.data.worlds import WORLDS, prompts_folder
from rlsys.display import note
from rlsys.errors import ConfigError
from rlsys.judging.agreement import agreement, injection
from rlsys.judging.cache import CachedJudge
from rlsys.judging.judge import CHUNK
from rlsys.judging.prompts import PromptSet, load_prompts
from rlsys.report.judge import judge_section
from rlsys.report.section import KindReport
from rlsys.roles.factory import RowSource
from rlsys.roles.judge import ROLE, JudgeHandle, JudgeSpec
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind


@dataclass
class JudgeStage:
    """A judge; its agreement is measured if the data has an oracle. Other stages name it."""

    kind: str = key("judge", "Kind of stage.", choices=("judge",))
    model: str = key(
        "", "The judge's frozen model: a policy stage or a folder.", ref="policy", quotes=True
    )
    endpoint: EndpointConfig = key(EndpointConfig(), "The judge's endpoint, instead of a model.")
    prompts: str = key(
        "", "A folder of prompts, or a built-in world that has its own; empty: those shipped."
    )
    max_new_tokens: int = key(256, "Longest reply, tokens.", ge=1)
    engine: EngineConfig = key(EngineConfig(max_model_len=4096), "Engine of the model.")
    split: str = key("evaluation", "Split that its agreement is measured on.")
    max_prompts: int = key(200, "Held-out prompts its agreement is measured on; 0: all.", ge=0)

    def check(self) -> None:
        if self.model and self.max_new_tokens >= self.engine.max_model_len:
            raise ConfigError(
                f"max_new_tokens: {self.max_new_tokens} leaves no room for a question in "
                f"engine.max_model_len {self.engine.max_model_len}"
            )
        if bool(self.model) == bool(self.endpoint.url):
            raise ConfigError("model: name either a model or an endpoint.url")
        if self.endpoint.url and not self.endpoint.model:
            raise ConfigError("endpoint.model: name the model to ask for")


@dataclass(frozen=True)
class OpenJudge:
    """timeout: of one call, seconds; prompts: the judge's prompt templates."""

    judge: CachedJudge
    timeout: float
    prompts: PromptSet


@contextmanager
def open_judge(
    context: Context, name: str, split: str, kind: RowKind = RowKind.PROMPTS
) -> Iterator[OpenJudge]:
    """The judge of the stage ``name`` with its own prompts, for questions about the rows of a
    split.
    """
    stage: JudgeStage = context.config.stages[name]
    prompts = load_prompts(prompts_folder(stage.prompts))
    records, data = context.data.rows(split, kind), context.data.slice(split, kind)
    with open_judge_on(context, name, records, data, prompts) as opened:
        yield opened


@contextmanager
def open_judge_on(
    context: Context, name: str, records: Rows[Any], data: RowSource, prompts: PromptSet
) -> Iterator[OpenJudge]:
    """The judge of the stage ``name``, for questions about any rows. Its replies are cached in the
    runs' folder, by model, prompts, question and pixels.

    Args: records: the rows that ``data`` loads in other processes.
    """
    # Imported here: experiment trackers look for such clients among imported modules.
    from rlsys.judging.endpoint import EndpointJudge

    stage: JudgeStage = context.config.stages[name]
    if stage.endpoint.url:
        timeout = endpoint_timeout(stage.endpoint)
        source: JudgeHandle | EndpointJudge = EndpointJudge(
            stage.endpoint,
            os.environ[stage.endpoint.key_variable],
            prompts,
            lambda row: records[row].open_image(),
            max_tokens=stage.max_new_tokens,
        )
    else:
        timeout = context.config.timeouts.call
        source = JudgeHandle(context.group(ROLE.name))
        model, dtype = context.folder(stage.model), context.config.dtype
        spec = JudgeSpec(model, data, stage.engine, dtype, prompts, stage.max_new_tokens)
        source.create(spec).result(context.config.timeouts.start)
    identity = _replies_of(context, stage)
    folder = Path(context.config.runs_dir).resolve() / "judgements" / identity[:16]
    pixels = cache(lambda row: pixel_hash(records[row]))
    path = folder / f"{context.run_dir.name}.jsonl"
    judge = CachedJudge(source, path, identity, pixels, prompts.wording)
    try:
        yield OpenJudge(judge, timeout, prompts)
    finally:
        judge.close()
        if isinstance(source, EndpointJudge):
            source.close()


def _replies_of(context: Context, judge: JudgeStage) -> str:
    """Hash of what determines a judge's replies besides its prompts: model or endpoint, engine
    settings and reply length.
    """
    if judge.endpoint.url:
        model = [judge.endpoint.url, judge.endpoint.model]
    else:
        dtype = context.config.dtype
        model = [context.digest(judge.model), dtype, repr(judge.engine.extra)]
    return hashlib.sha256(json.dumps([model, judge.max_new_tokens]).encode()).hexdigest()


def endpoint_timeout(endpoint: EndpointConfig) -> float:
    """Until a chunk of questions is answered or given up, seconds."""
    turns = -(-CHUNK // endpoint.max_concurrency)
    return turns * (endpoint.retry_timeout + 2 * endpoint.timeout) + CHUNK / endpoint.per_second


def run_judge(context: Context, name: str, stage: JudgeStage, folder: Path) -> Result:
    """Agreement with the data's oracle on held-out prompts, where it has one."""
    world = WORLDS.get(context.config.data.source)
    if world is None:
        context.display.message("    not measured: the data has no oracle for the right replies")
        return {}
    records = context.data.pairs(stage.split)
    rows = draw_rows(records, stage.max_prompts, context.config.seed)
    labelled = [(row, records[row]) for row in rows]
    metrics: dict[str, float] = {"prompts": len(rows)}
    with open_judge(context, name, stage.split, RowKind.PAIRS) as opened:
        oracle, seed = world.feedback, context.config.seed
        metrics |= agreement(opened.judge, labelled, oracle, seed=seed, timeout=opened.timeout)
        metrics |= injection(opened.judge, labelled, oracle, timeout=opened.timeout)
        metrics["questions"] = opened.judge.requested
    context.log(name, stage.kind, 1, metrics)
    (folder / "agreement.json").write_text(json.dumps(metrics, indent=1))
    shown = [key for key in metrics if key.startswith(("agreement/", "injection/"))]
    context.display.message(
        "    " + note(metrics, *(key for key in shown if not key.endswith("_n")))
    )
    return metrics


def draw_rows(records: Rows[Prompt], max_prompts: int, seed: int) -> list[int]:
    """Some rows in rising order, all where ``max_prompts`` is 0 or large."""
    count = len(records)
    draw = random.Random(f"{seed}/sample")
    return sorted(draw.sample(range(count), min(max_prompts or count, count)))


def judge_inputs(context: Context, name: str, stage: AskingStage) -> dict[str, str]:
    """Inputs of a stage that uses a judge: what determines its replies, not its measurement."""
    judge: JudgeStage = context.config.stages[stage.judge]
    prompts = load_prompts(prompts_folder(judge.prompts))
    return {"judge": judge_digest(context, stage.judge, prompts)}


def judge_digest(context: Context, name: str, prompts: PromptSet) -> str:
    """What determines a judge's replies to these prompts."""
    judge: JudgeStage = context.config.stages[name]
    room = judge.engine.max_model_len  # decides which questions are too long to be asked
    return f"{_replies_of(context, judge)} {prompts.digest} {room}"


class Asking(Protocol):
    """A stage that may name a judge stage."""

    judge: str


def judge_roles(stage: Asking, earlier: Mapping[str, Any]) -> Sequence[str]:
    """Roles of a stage that uses a judge."""
    judge = earlier.get(stage.judge)
    return (ROLE.name,) if judge is not None and judge.model else ()


def _roles(stage: JudgeStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (ROLE.name,) if stage.model else ()


def _check(config: RunConfig, name: str, stage: JudgeStage) -> None:
    load_prompts(prompts_folder(stage.prompts))


def _check_data(name: str, stage: JudgeStage, data: Datasets) -> None:
    """Checked before a run only: a recipe without the endpoint's key is valid."""
    variable = stage.endpoint.key_variable
    if stage.endpoint.url and not os.environ.get(variable):
        raise ConfigError(
            f"stages.{name}.endpoint.key_variable: the environment has no {variable}; set it to "
            "the endpoint's key (anything, where it needs none)"
        )


def _inputs(context: Context, name: str, stage: JudgeStage) -> dict[str, str]:
    return {"prompts": load_prompts(prompts_folder(stage.prompts)).digest}


def _reads(stage: JudgeStage) -> Sequence[Read]:
    return [Read(stage.split, RowKind.PAIRS, held_out=True, world_only=True)]


JUDGE = StageKind(
    "judge",
    JudgeStage,
    run_judge,
    _roles,
    makes="judge",
    check=_check,
    check_data=_check_data,
    inputs=_inputs,
    reads=_reads,
    report=KindReport(
        heading="The judge", anchor="judge", nav="Judge", order=10, section=judge_section
    ),
)

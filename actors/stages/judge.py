"""A judge: measured against what the data knows, and opened for the stages that ask one."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from actors.display import note
from actors.proxies import RemoteJudge
from actors.recipe import Context
from rlsys.config.feedback import EndpointConfig, JudgeStage
from rlsys.data.rows import Prompt, Rows, pixel_hash
from rlsys.data.slice import RowKind
from rlsys.data.worlds import WORLDS, prompts_folder
from rlsys.engines.workbench import RoleSpec
from rlsys.errors import ConfigError
from rlsys.judging.agreement import agreement, injection
from rlsys.judging.cache import CachedJudge
from rlsys.judging.judge import CHUNK
from rlsys.judging.prompts import PromptSet, load_prompts


@dataclass(frozen=True)
class OpenJudge:
    """``timeout``: of one call, seconds; ``prompts``: what it is asked with."""

    judge: CachedJudge
    timeout: float
    prompts: PromptSet


def check_judge(name: str, stage: JudgeStage) -> None:
    """What can be known before anything runs. Raises: ConfigError."""
    load_prompts(prompts_folder(stage.prompts))
    variable = stage.endpoint.key_variable
    if stage.endpoint.url and not os.environ.get(variable):
        raise ConfigError(
            f"stages.{name}.endpoint.key_variable: the environment has no {variable}; set it to "
            "the endpoint's key (anything, where it needs none)"
        )


@contextmanager
def open_judge(
    context: Context, stage: JudgeStage, split: str, kind: RowKind = RowKind.PROMPTS
) -> Iterator[OpenJudge]:
    """The judge of a stage, for questions about the rows of a split. What it was ever asked is
    remembered in the runs' folder, by model, prompts, question and pixels.
    """
    # Not when the program starts: trackers look for such clients among what is imported.
    from rlsys.judging.endpoint import EndpointJudge

    records = context.data.rows(split, kind)
    prompts = load_prompts(prompts_folder(stage.prompts))
    if stage.endpoint.url:
        key = os.environ[stage.endpoint.key_variable]
        timeout = endpoint_timeout(stage.endpoint)
        asked: RemoteJudge | EndpointJudge = EndpointJudge(
            stage.endpoint,
            key,
            prompts,
            lambda row: records[row].open_image(),
            max_tokens=stage.max_new_tokens,
        )
    else:
        timeout = context.config.timeouts.call
        asked = RemoteJudge(context.cluster.by_role["judge"])
        spec = RoleSpec(
            "judge",
            context.folder(stage.model),
            context.data.slice(split, kind),
            engine=stage.engine,
            prompts=prompts,
            max_new_tokens=stage.max_new_tokens,
        )
        asked.create(spec).result(context.config.timeouts.start)
    identity = context.replies_of(stage)
    runs, name = Path(context.config.runs_dir).resolve(), f"{context.run_dir.name}-{os.getpid()}"
    memory = runs / "judgements" / identity[:16] / f"{name}.jsonl"
    pixels = cache(lambda row: pixel_hash(records[row]))
    judge = CachedJudge(asked, memory, identity, pixels, prompts.wording)
    try:
        yield OpenJudge(judge, timeout, prompts)
    finally:
        judge.close()
        if isinstance(asked, EndpointJudge):
            asked.close()


def endpoint_timeout(endpoint: EndpointConfig) -> float:
    """Until a chunk of questions is answered or given up, seconds."""
    turns = -(-CHUNK // endpoint.parallel)
    return turns * (endpoint.patience + 2 * endpoint.timeout) + CHUNK / endpoint.per_second


def run_judge(context: Context, name: str, stage: JudgeStage, folder: Path) -> dict[str, Any]:
    """Agreement with the data's oracle on held-out prompts, where it has one."""
    world = WORLDS.get(context.config.data.source)
    if world is None:
        context.display.say("    not measured: the data does not know the right replies")
        return {}
    records = context.data.pairs("evaluation")
    rows = draw_rows(records, stage.limit, context.config.seed)
    labelled = [(row, records[row]) for row in rows]
    found: dict[str, float] = {"prompts": len(rows)}
    with open_judge(context, stage, "evaluation", RowKind.PAIRS) as opened:
        oracle, seed = world.feedback, context.config.seed
        found |= agreement(opened.judge, labelled, oracle, seed=seed, timeout=opened.timeout)
        found |= injection(opened.judge, labelled, oracle, timeout=opened.timeout)
        found["questions"] = opened.judge.asked
    context.log(name, "judge", 1, found)
    (folder / "agreement.json").write_text(json.dumps(found, indent=1))
    shown = [key for key in found if key.startswith(("agreement/", "injection/"))]
    context.display.say("    " + note(found, *(key for key in shown if not key.endswith("_n"))))
    return found


def draw_rows(records: Rows[Prompt], limit: int, seed: int) -> list[int]:
    """Some rows in rising order, all where ``limit`` is 0 or large."""
    count = len(records)
    draw = random.Random(f"{seed}/sample")
    return sorted(draw.sample(range(count), min(limit or count, count)))

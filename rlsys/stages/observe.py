"""``observe``: a teacher observes the risks of training prompts, and answers given these."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.config.judging import AskingStage
from rlsys.config.keys import key
from rlsys.data.conversation_counts import Heading, describe
from rlsys.data.llava import conversation_row, load_conversations
from rlsys.data.pictures import Picture, picture_bytes
from rlsys.data.prepare import Read
from rlsys.data.slice import RowKind
from rlsys.errors import ConfigError
from rlsys.judging.distill import distill
from rlsys.judging.judge import JudgedPrompt, check_parse_failures
from rlsys.judging.outcomes import DistillOutcome, count_metrics, identifier, outcome_label
from rlsys.stages.context import Context
from rlsys.stages.judge import draw_rows, judge_inputs, judge_roles, open_judge
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.sft import CONVERSATIONS

DISTILL_CHUNK = 256  # prompts between two updates of the progress bar


@dataclass
class ObserveStage(AskingStage):
    """A teacher's observations of training prompts, and its answers, as conversations."""

    kind: str = key("observe", "Kind of stage.", choices=("observe",))
    split: str = key("train", "A split, or several joined by a plus sign.")
    max_prompts: int = key(0, "Prompts, drawn at random; 0: all.", ge=0)

    def check(self) -> None:
        if not self.split:
            raise ConfigError("split: name a split")


def run_observe(context: Context, name: str, stage: ObserveStage, folder: Path) -> Result:
    """A teacher's answers to training prompts, written with their verified risks in its prompt."""
    records = context.data.prompts(stage.split)
    drawn = draw_rows(records, stage.max_prompts, context.config.seed)
    # A judge's prompts have one image and one message.
    rows = [row for row in drawn if len(records[row].images) == 1 and not records[row].history]
    outcomes = +Counter[str]({DistillOutcome.UNSUPPORTED_PROMPT: len(drawn) - len(rows)})
    path = folder / CONVERSATIONS
    with (
        open_judge(context, stage.judge, stage.split) as opened,
        context.display.bar(name, len(rows)) as bar,
        path.open("w", encoding="utf-8") as file,
    ):
        for start in range(0, len(rows), DISTILL_CHUNK):
            prompts = [
                JudgedPrompt(r, records[r].question) for r in rows[start : start + DISTILL_CHUNK]
            ]
            distilled, counted = distill(
                opened.judge, prompts, joint=stage.joint, timeout=opened.timeout
            )
            outcomes += counted
            done = start + len(prompts)
            left_out = done - outcomes[DistillOutcome.DISTILLED]
            check_parse_failures(name, left_out, done, stage.max_parse_failures, outcomes)
            for each in distilled:
                record = records[each.prompt.row]
                image = _image_path(record.image, folder, each.prompt.row)
                line = conversation_row(
                    f"{name}-{record.id}", image, record.question, each.answer, each.observations
                )
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            bar.advance(f"{outcomes[DistillOutcome.DISTILLED]} distilled", by=len(prompts))
    counts = describe(load_conversations(path).rows)
    lines = [f"{n} {outcome_label(key)}" for key, n in outcomes.most_common()]
    context.display.message("    " + ", ".join(lines))
    sources = {identifier(label): n for label, n in counts[Heading.SOURCES].items()}
    return count_metrics("distill", outcomes) | count_metrics("source", sources)


def _image_path(image: Picture | None, folder: Path, row: int) -> str:
    """Path of an image; one that is not a file of its own is written to ``folder``."""
    assert image is not None
    if isinstance(image, str):
        return str(Path(image).resolve())
    (folder / "images").mkdir(exist_ok=True)
    name = f"images/{row:06d}.png"
    (folder / name).write_bytes(picture_bytes(image))
    return name


def _roles(stage: ObserveStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return judge_roles(stage, earlier)


def _reads(stage: ObserveStage) -> Sequence[Read]:
    return [Read(stage.split, RowKind.PROMPTS, learned=True)]


OBSERVE = StageKind(
    "observe",
    ObserveStage,
    run_observe,
    _roles,
    makes="conversations",
    inputs=judge_inputs,
    reads=_reads,
)

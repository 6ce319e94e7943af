"""``observe``: a teacher looks at training prompts, and answers them knowing their risks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys.config.feedback import ObserveStage
from rlsys.data.llava import conversation_row, describe, load_conversations
from rlsys.judging.judge import Prompt, check_unread
from rlsys.judging.teach import teach
from rlsys.stages.context import Context
from rlsys.stages.judge import draw_rows, judge_inputs, judge_roles, open_judge
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.sft import CONVERSATIONS

TEACH_CHUNK = 256  # prompts between two marks of progress


def run_observe(context: Context, name: str, stage: ObserveStage, folder: Path) -> Result:
    """A teacher looks at training prompts, and answers them knowing their risks."""
    records = context.data.training[stage.split]
    drawn = draw_rows(records, stage.limit, context.config.seed)
    # A judge is asked about one picture and one message.
    rows = [row for row in drawn if records[row].image is not None and not records[row].history]
    outcomes = +Counter({"left out: no image, or a later turn": len(drawn) - len(rows)})
    path = folder / CONVERSATIONS
    with (
        open_judge(context, stage.judge, stage.split) as opened,
        context.display.bar(name, len(rows)) as bar,
        path.open("w", encoding="utf-8") as file,
    ):
        for start in range(0, len(rows), TEACH_CHUNK):
            prompts = [Prompt(r, records[r].question) for r in rows[start : start + TEACH_CHUNK]]
            taught, counted = teach(
                opened.judge, prompts, joint=stage.joint, timeout=opened.timeout
            )
            outcomes += counted
            done = start + len(prompts)
            left_out = done - outcomes["taught"]
            check_unread(name, left_out, done, stage.max_unread, outcomes)
            for each in taught:
                record = records[each.prompt.row]
                image = _image_path(record.image, folder, each.prompt.row)
                line = conversation_row(
                    f"{name}-{record.id}", image, record.question, each.answer, each.observations
                )
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            bar.advance(f"{outcomes['taught']} taught", by=len(prompts))
    counts = describe(load_conversations(path).rows)
    context.display.say("    " + ", ".join(f"{n} {o}" for o, n in outcomes.most_common()))
    observed = {f"source/{name}": float(n) for name, n in counts["sources"].items()}
    return {f"outcome/{name}": float(n) for name, n in outcomes.items()} | observed


def _image_path(image: str | bytes | None, folder: Path, row: int) -> str:
    """Where the picture is; one that has no file gets one."""
    assert image is not None
    if isinstance(image, str):
        return str(Path(image).resolve())
    (folder / "images").mkdir(exist_ok=True)
    name = f"images/{row:06d}.png"
    (folder / name).write_bytes(image)
    return name


def _roles(stage: ObserveStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return judge_roles(stage, earlier)


OBSERVE = StageKind(
    "observe", ObserveStage, run_observe, _roles, makes="conversations", inputs=judge_inputs
)

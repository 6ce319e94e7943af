"""Stages that ask a judge about prompts: a teacher's conversations, risks told to a policy."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from actors.recipe import Context
from actors.stages.evaluate import Examiner, decode, prompts_of
from actors.stages.judge import draw_rows, open_judge
from actors.stages.rollout import rollout_of
from actors.stages.training import CONVERSATIONS
from rlsys.batch import SampleRequest
from rlsys.config.feedback import DisentangledStage, ObserveStage
from rlsys.data.llava import conversation_row, describe, load_conversations
from rlsys.judging.judge import JudgedPrompt, check_unread, disentangle, risk_note
from rlsys.judging.teach import teach
from rlsys.models.load import load_processor
from rlsys.roles import as_completed

TEACH_CHUNK = 256  # prompts between two marks of progress


def run_observe(context: Context, name: str, stage: ObserveStage, folder: Path) -> dict[str, Any]:
    """A teacher looks at training prompts, and answers them knowing their risks."""
    records = context.data.prompts(stage.split)
    drawn = draw_rows(records, stage.limit, context.config.seed)
    # A judge is asked about one picture and one message.
    rows = [row for row in drawn if records[row].image is not None and not records[row].history]
    outcomes = +Counter({"left out: no image, or a later turn": len(drawn) - len(rows)})
    path = folder / CONVERSATIONS
    judge_stage = context.config.stages[stage.judge]
    with (
        open_judge(context, judge_stage, stage.split) as opened,
        context.display.bar(name, len(rows)) as bar,
        path.open("w", encoding="utf-8") as file,
    ):
        for start in range(0, len(rows), TEACH_CHUNK):
            prompts = [
                JudgedPrompt(r, records[r].question) for r in rows[start : start + TEACH_CHUNK]
            ]
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


def run_disentangled(
    context: Context, name: str, stage: DisentangledStage, folder: Path
) -> dict[str, Any]:
    """Greedy held-out answers of a policy that is told the verified risks of each prompt."""
    examiner, limits = Examiner(context, name, stage.cost), context.config.timeouts
    records, count = context.data.prompts("evaluation"), prompts_of(context, stage.limit)
    with open_judge(context, context.config.stages[stage.judge], "evaluation") as opened:
        prompts = [JudgedPrompt(row, records[row].question) for row in range(count)]
        found = disentangle(opened.judge, prompts, joint=stage.joint, timeout=opened.timeout)
        prompt_set = opened.prompts
    outcomes = sum((each.outcomes for each in found), Counter[str]())
    unread = sum(not each.known for each in found)
    check_unread(name, unread, count, stage.max_unread, outcomes)
    model = context.folder(stage.policy)
    rollout = rollout_of(context, model, 0, stage.max_new_tokens)
    tokenizer = load_processor(model).tokenizer
    notes = [
        risk_note(prompt_set, each.observations, tokenizer.all_special_tokens) for each in found
    ]
    requests = [SampleRequest(row, 0, 0, told) for row, told in enumerate(notes)]
    plain, told = ([r for r in requests if bool(r.note) == noted] for noted in (False, True))
    texts: dict[int, str] = {}
    with context.display.bar(name, count) as bar:
        for some in (plain, told):  # who is told nothing is answered in nobody's company
            for chunk in as_completed(rollout.generate(some, greedy=True), limits.call):
                texts |= decode(tokenizer, chunk)
                bar.advance(name, by=len(chunk))
    examiner.save(folder, {name: examiner.examine(texts)})
    return {
        "prompts": count,
        "told": len(told),
        "unread": unread,
        "calls": sum(each.calls for each in found),
        **{f"outcome/{reason}": float(number) for reason, number in outcomes.items()},
    }

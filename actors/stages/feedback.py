"""Stages that have a judge observe prompts: distillation data, and answers conditioned on risks."""

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
from rlsys.judging.distill import distill
from rlsys.judging.judge import Prompt, check_parse_failures, disentangle, risk_hint
from rlsys.judging.outcomes import DistillOutcome, count_metrics, identifier, outcome_label
from rlsys.models.load import load_processor
from rlsys.roles import as_completed

DISTILL_CHUNK = 256  # prompts between two updates of the progress bar


def run_observe(context: Context, name: str, stage: ObserveStage, folder: Path) -> dict[str, Any]:
    """A teacher's answers to training prompts, written with their verified risks in its prompt."""
    records = context.data.training[stage.split]
    drawn = draw_rows(records, stage.limit, context.config.seed)
    # A judge's prompts have one image and one message.
    rows = [row for row in drawn if records[row].image is not None and not records[row].history]
    outcomes = +Counter[str]({DistillOutcome.UNSUPPORTED_PROMPT: len(drawn) - len(rows)})
    path = folder / CONVERSATIONS
    judge_stage = context.config.stages[stage.judge]
    with (
        open_judge(context, judge_stage, stage.split) as opened,
        context.display.bar(name, len(rows)) as bar,
        path.open("w", encoding="utf-8") as file,
    ):
        for start in range(0, len(rows), DISTILL_CHUNK):
            prompts = [Prompt(r, records[r].question) for r in rows[start : start + DISTILL_CHUNK]]
            distilled, counted = distill(
                opened.judge, prompts, joint=stage.joint, timeout=opened.timeout
            )
            outcomes += counted
            done = start + len(prompts)
            left_out = done - outcomes[DistillOutcome.DISTILLED]
            check_parse_failures(name, left_out, done, stage.max_unread, outcomes)
            for each in distilled:
                record = records[each.prompt.row]
                image = _image_path(record.image, folder, each.prompt.row)
                line = conversation_row(
                    f"{name}-{record.id}", image, record.question, each.answer, each.observations
                )
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            bar.advance(f"{outcomes[DistillOutcome.DISTILLED]} distilled", by=len(prompts))
    counts = describe(load_conversations(path).rows)
    said = [f"{n} {outcome_label(key)}" for key, n in outcomes.most_common()]
    context.display.say("    " + ", ".join(said))
    sources = {identifier(label): n for label, n in counts["sources"].items()}
    return count_metrics("distill", outcomes) | count_metrics("source", sources)


def _image_path(image: str | bytes | None, folder: Path, row: int) -> str:
    """Path of an image; an image given as bytes is written to ``folder``."""
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
    """Greedy held-out answers of a policy whose prompts hold their verified risks."""
    examiner, limits = Examiner(context, name, stage.cost), context.config.timeouts
    records, count = context.data.evaluation, prompts_of(context, stage.limit)
    with open_judge(context, context.config.stages[stage.judge], "evaluation") as opened:
        prompts = [Prompt(row, records[row].question) for row in range(count)]
        results = disentangle(opened.judge, prompts, joint=stage.joint, timeout=opened.timeout)
        prompt_set = opened.prompts
    outcomes = sum((each.outcomes for each in results), Counter[str]())
    unparsed = sum(not each.known for each in results)
    check_parse_failures(name, unparsed, count, stage.max_unread, outcomes)
    model = context.folder(stage.policy)
    rollout = rollout_of(context, model, 0, stage.max_new_tokens)
    tokenizer = load_processor(model).tokenizer
    hints = [
        risk_hint(prompt_set, each.observations, tokenizer.all_special_tokens) for each in results
    ]
    requests = [SampleRequest(row, 0, 0, hint) for row, hint in enumerate(hints)]
    plain = [request for request in requests if not request.note]
    conditioned = [request for request in requests if request.note]
    texts: dict[int, str] = {}
    with context.display.bar(name, count) as bar:
        for some in (plain, conditioned):  # a batch's other prompts change rounding errors
            for chunk in as_completed(rollout.generate(some, greedy=True), limits.call):
                texts |= decode(tokenizer, chunk)
                bar.advance(name, by=len(chunk))
    examiner.save(folder, {name: examiner.examine(texts)})
    return {
        "prompts": count,
        "conditioned": len(conditioned),
        "unparsed": unparsed,
        "calls": sum(each.calls for each in results),
        **count_metrics("observe", outcomes),
    }

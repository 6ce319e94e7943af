"""Held-out answers and their evaluation, for every stage that answers held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.batch import Rollouts
from rlsys.config.keys import key
from rlsys.config.schema import TOKEN_BUDGET, RunConfig
from rlsys.data.prepare import Read
from rlsys.data.slice import RowKind
from rlsys.errors import ConfigError
from rlsys.evaluation.answers import Answer, judge_answer, sample_rows
from rlsys.evaluation.stats import Outcome, Table, save_evaluation, tabulate
from rlsys.roles.rollout import ROLE as ROLLOUT
from rlsys.roles.scorer import COST, ScorerHandle, ScorerSpec
from rlsys.stages.context import Context
from rlsys.stages.lengths import check_lengths

COST_SIGN = "the sign of a cost model, which is no independent judge"


@dataclass(frozen=True)
class Evaluated:
    """Answers in the order of their rows' ids, each with its outcome and the outcome's label."""

    answers: list[Answer]
    outcomes: list[tuple[Outcome, str]]

    @property
    def table(self) -> Table:
        return tabulate([outcome for outcome, _ in self.outcomes])


@dataclass
class AnsweringStage:
    """Keys of every stage that answers held-out prompts."""

    cost: str = key(
        "", "Cost model that judges safety where the data has no oracle of its own.", ref="cost"
    )
    split: str = key("evaluation", "Split of the prompts, or several joined by a plus sign.")
    max_prompts: int = key(0, "Prompts to answer; 0: all.", ge=0)
    max_new_tokens: int = key(16, "Longest answer, tokens.", ge=1)


class Evaluator:
    """Judges answers to held-out prompts by the data's oracle, else by the sign of the cost.

    Raises: ConfigError where there is neither.
    """

    def __init__(self, context: Context, name: str, stage: AnsweringStage) -> None:
        self.context = context
        self.records, self.oracle = context.data.prompts(stage.split), context.data.oracle
        self.scorer: ScorerHandle | None = None
        if self.oracle is not None:
            return
        if not stage.cost:
            raise ConfigError(
                f"stages.{name}.cost: {context.config.data.source} has no oracle; "
                "name the cost model that judges its answers"
            )
        self.scorer = ScorerHandle(context.group(COST.name), COST.name)
        model = context.folder(stage.cost)
        data = context.data.slice(stage.split, RowKind.PROMPTS)
        spec = ScorerSpec(model, data, context.config.dtype, TOKEN_BUDGET)
        self.scorer.create(spec).result(context.config.timeouts.start)

    def evaluate(self, texts: Mapping[int, str]) -> Evaluated:
        """Args: texts: row of the split -> answer."""
        rows = sorted(texts, key=lambda row: self.records[row].id)
        costs: list[float | None] = [None] * len(rows)
        if self.scorer is not None:
            pending = self.scorer.score_texts(rows, [texts[row] for row in rows])
            costs = pending.result(self.context.config.timeouts.call).tolist()
        answers = [
            Answer(self.records[row], texts[row], cost)
            for row, cost in zip(rows, costs, strict=True)
        ]
        return Evaluated(answers, [judge_answer(answer, self.oracle) for answer in answers])

    def save(self, folder: Path, evaluated: Mapping[str, Evaluated]) -> None:
        """Write evaluation.json, samples.jsonl and the images of the report's gallery."""
        (folder / "images").mkdir()
        tables = {policy: each.table for policy, each in evaluated.items()}
        save_evaluation(folder / "evaluation.json", tables)
        judge = "the data's own oracle" if self.oracle else COST_SIGN
        count = len(next(iter(evaluated.values())).answers)
        meta = {"judged_by": judge, "prompts": count}
        (folder / "evaluation_meta.json").write_text(json.dumps(meta))
        with (folder / "samples.jsonl").open("w") as samples:
            for policy, each in evaluated.items():
                for row in sample_rows(policy, each.answers, each.outcomes, folder / "images"):
                    samples.write(json.dumps(row) + "\n")


def prompts_of(context: Context, stage: AnsweringStage) -> int:
    """How many rows of the split to answer; ``max_prompts`` 0 means all."""
    records = context.data.prompts(stage.split)
    return min(stage.max_prompts or len(records), len(records))


def decode(tokenizer: Any, chunk: Rollouts) -> dict[int, str]:
    """Dataset row -> its answer's text."""
    return {row: text for (row, _), text in decode_samples(tokenizer, chunk).items()}


def decode_samples(tokenizer: Any, chunk: Rollouts) -> dict[tuple[int, int], str]:
    """(dataset row, sample) -> the answer's text."""
    places = zip(chunk.prompt_index.tolist(), chunk.sample_index.tolist(), strict=True)
    return {
        place: tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
        for place, ids, length in zip(places, chunk.response_ids, chunk.lengths, strict=True)
    }


def evaluation_roles(stage: AnsweringStage) -> Sequence[str]:
    """The rollout engines, and the cost model if it judges the answers."""
    return (ROLLOUT.name, COST.name) if stage.cost else (ROLLOUT.name,)


def check_answering(config: RunConfig, name: str, stage: AnsweringStage) -> None:
    check_lengths(config, f"stages.{name}", stage.max_new_tokens)
    for other, each in config.stages.items():
        if isinstance(each, AnsweringStage) and each.split != stage.split:
            raise ConfigError(
                f"stages.{name}.split: {stage.split!r}, but stages.{other} answers {each.split!r}; "
                "a report compares answers to the same prompts"
            )


def answering_reads(stage: AnsweringStage) -> list[Read]:
    """The prompts it answers."""
    return [Read(stage.split, RowKind.PROMPTS, held_out=True)]

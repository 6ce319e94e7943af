"""Greedy held-out answers, judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.proxies import RemoteScorer
from actors.recipe import Context
from actors.stages.rollout import rollout_of
from rlsys.batch import Rollouts, SampleRequest
from rlsys.config.stages import EvaluateStage
from rlsys.data.slice import RowKind
from rlsys.engines.workbench import RoleSpec
from rlsys.errors import ConfigError
from rlsys.evaluation.answers import Answer, judge_answer, sample_rows
from rlsys.evaluation.stats import Outcome, Table, save_evaluation, tabulate
from rlsys.models.load import load_processor
from rlsys.roles import as_completed


@dataclass(frozen=True)
class Examined:
    """Answers in the order of their rows' ids, each with its outcome and a word for it."""

    answers: list[Answer]
    judged: list[tuple[Outcome, str]]

    @property
    def table(self) -> Table:
        return tabulate([outcome for outcome, _ in self.judged])


class Examiner:
    """Judges answers to held-out prompts: by the data's own oracle, else by a cost model's sign.

    Raises: ConfigError where there is neither.
    """

    def __init__(self, context: Context, name: str, cost: str) -> None:
        self.context = context
        self.records, self.oracle = context.data.prompts("evaluation"), context.data.oracle
        self.scorer: RemoteScorer | None = None
        if self.oracle is not None:
            return
        if not cost:
            raise ConfigError(
                f"stages.{name}.cost: {context.config.data.source} has no oracle; "
                "name the cost model that judges its answers"
            )
        self.scorer = RemoteScorer(context.cluster.by_role["cost"], "cost")
        spec = RoleSpec(
            "cost", context.folder(cost), context.data.slice("evaluation", RowKind.PROMPTS)
        )
        self.scorer.create(spec).result(context.config.timeouts.start)

    def examine(self, texts: Mapping[int, str]) -> Examined:
        """Args: texts: row of the evaluation split -> answer."""
        rows = sorted(texts, key=lambda row: self.records[row].id)
        costs: list[float | None] = [None] * len(rows)
        if self.scorer is not None:
            pending = self.scorer.score_texts(rows, [texts[row] for row in rows])
            costs = pending.result(self.context.config.timeouts.call).tolist()
        answers = [
            Answer(self.records[row], texts[row], cost)
            for row, cost in zip(rows, costs, strict=True)
        ]
        return Examined(answers, [judge_answer(answer, self.oracle) for answer in answers])

    def save(self, folder: Path, examined: Mapping[str, Examined]) -> None:
        """evaluation.json, samples.jsonl and the images of the gallery, for the run to show."""
        (folder / "images").mkdir()
        tables = {policy: found.table for policy, found in examined.items()}
        save_evaluation(folder / "evaluation.json", tables)
        judge = "the data's own oracle" if self.oracle else "the cost model's sign"
        count = len(next(iter(examined.values())).answers)
        meta = {"judged_by": judge, "prompts": count}
        (folder / "evaluation_meta.json").write_text(json.dumps(meta))
        with (folder / "samples.jsonl").open("w") as samples:
            for policy, found in examined.items():
                for row in sample_rows(policy, found.answers, found.judged, folder / "images"):
                    samples.write(json.dumps(row) + "\n")


def run_evaluate(context: Context, name: str, stage: EvaluateStage, folder: Path) -> dict[str, Any]:
    """Greedy answers of every policy to the same held-out prompts, judged and tabulated."""
    examiner = Examiner(context, name, stage.cost)
    count = prompts_of(context, stage.limit)
    examined = {}
    with context.display.bar(name, count * len(stage.policies)) as bar:
        for version, (policy, source) in enumerate(stage.policies.items()):
            model = context.folder(source)
            rollout = rollout_of(context, model, version, stage.max_new_tokens)
            requests = [SampleRequest(i, 0, 0) for i in range(count)]
            tokenizer = load_processor(model).tokenizer
            texts: dict[int, str] = {}
            chunks = rollout.generate(requests, greedy=True)
            for chunk in as_completed(chunks, context.config.timeouts.call):
                texts |= decode(tokenizer, chunk)
                bar.advance(policy, by=len(chunk))
            examined[policy] = examiner.examine(texts)
    examiner.save(folder, examined)
    return {"prompts": count}


def prompts_of(context: Context, limit: int) -> int:
    """How many rows of the evaluation split to answer; a limit of 0 means all."""
    records = context.data.prompts("evaluation")
    return min(limit or len(records), len(records))


def decode(tokenizer: Any, chunk: Rollouts) -> dict[int, str]:
    rows = zip(chunk.prompt_index.tolist(), chunk.response_ids, chunk.lengths, strict=True)
    return {
        index: tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
        for index, ids, length in rows
    }

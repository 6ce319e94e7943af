"""``evaluate``: greedy held-out answers of policies, judged and tabulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from rlsys.batch import SampleRequest
from rlsys.config.keys import key
from rlsys.drivers.sampling import generate_in_slices
from rlsys.errors import ConfigError
from rlsys.models.load import load_processor
from rlsys.stages.answering import (
    AnsweringStage,
    Evaluator,
    answering_reads,
    check_answering,
    decode,
    evaluation_roles,
    prompts_of,
)
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.rollout import rollout_of


@dataclass
class EvaluateStage(AnsweringStage):
    """Greedy answers to held-out prompts, judged."""

    kind: str = key("evaluate", "Kind of stage.", choices=("evaluate",))
    policies: dict[str, str] = key(MISSING, "Name in the report -> stage or folder.", ref="policy")

    def check(self) -> None:
        if not self.policies:
            raise ConfigError("policies: name at least one policy to evaluate")


def run_evaluate(context: Context, name: str, stage: EvaluateStage, folder: Path) -> Result:
    """Greedy answers of every policy to the same held-out prompts."""
    evaluator = Evaluator(context, name, stage)
    count = prompts_of(context, stage)
    evaluated = {}
    with context.display.bar(name, count * len(stage.policies)) as bar:
        for version, (policy, source) in enumerate(stage.policies.items()):
            model = context.folder(source)
            rollout = rollout_of(context, model, version, stage.split, stage.max_new_tokens)
            requests = [SampleRequest(i, 0, 0) for i in range(count)]
            tokenizer = load_processor(model).tokenizer
            texts: dict[int, str] = {}
            limit = context.config.timeouts.call
            for chunk in generate_in_slices(rollout, requests, limit, greedy=True):
                texts |= decode(tokenizer, chunk)
                bar.advance(policy, by=len(chunk))
            evaluated[policy] = evaluator.evaluate(texts)
    evaluator.save(folder, evaluated)
    return {"prompts": count}


def _roles(stage: EvaluateStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return evaluation_roles(stage)


EVALUATE = StageKind(
    "evaluate",
    EvaluateStage,
    run_evaluate,
    _roles,
    check=check_answering,
    samples=True,
    evaluates=True,
    reads=answering_reads,
)

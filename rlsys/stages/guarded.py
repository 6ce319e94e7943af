"""``guarded``: a policy behind a guard; flagged answers are regenerated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from rlsys.config.keys import key
from rlsys.config.schema import TOKEN_BUDGET
from rlsys.data.slice import RowKind
from rlsys.display import note
from rlsys.drivers.guarded import Answers, GuardedRun, guarded_generation
from rlsys.errors import ConfigError
from rlsys.guard.levels import ACTIONS, LEVELS, REFUSAL
from rlsys.models.load import load_processor
from rlsys.report.drawing import PURPLE
from rlsys.report.guarded import guarded_section
from rlsys.report.section import KindReport
from rlsys.roles.guard import ROLE as GUARD
from rlsys.roles.guard import GuardHandle, GuardSpec
from rlsys.runtime.pending import Metrics
from rlsys.stages.answering import (
    AnsweringStage,
    Evaluated,
    Evaluator,
    answering_reads,
    check_answering,
    evaluation_roles,
    prompts_of,
)
from rlsys.stages.context import Context
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.rollout import rollout_of


@dataclass
class GuardedStage(AnsweringStage):
    """A policy behind a guard, on held-out prompts: moderate, regenerate, finally refuse."""

    kind: str = key("guarded", "Kind of stage.", choices=("guarded",))
    policy: str = key(MISSING, "The policy that answers: a stage or a folder.", ref="policy")
    guard: str = key(MISSING, "The guard: a stage or a folder.", ref="guard")
    rounds: int = key(5, "Most rounds of regeneration.", ge=0)
    candidates: int = key(
        4, "Answers sampled per flagged prompt and round; the first that passes is taken.", ge=1
    )
    temperature: float = key(1.0, "Sampling temperature of regenerated answers.", gt=0, le=2)
    hint: str = key("", "Added to the question of regenerated answers.")
    threshold: float = key(0.5, "Probability from which an answer counts as unsafe.", gt=0, lt=1)
    moderate_prompts: bool = key(
        False, "Moderate prompts before they are answered; unsafe ones are refused, not sampled."
    )
    prompt_threshold: float = key(
        0.5,
        "Probability from which a prompt counts as unsafe, with `moderate_prompts`.",
        gt=0,
        lt=1,
    )
    actions: dict[str, str] = key(
        dict.fromkeys(LEVELS[1:], "regenerate"),
        "Action per severity level; annotate passes the answer and counts it.",
        choices=ACTIONS,
    )
    refusal: str = key(REFUSAL, "Replaces refused answers.")

    def check(self) -> None:
        if set(self.actions) != set(LEVELS[1:]):
            raise ConfigError(f"actions: need {', '.join(LEVELS[1:])}, got {list(self.actions)}")


def run_guarded(context: Context, name: str, stage: GuardedStage, folder: Path) -> Result:
    """The policy's answers after every round, and with the refusal, evaluated."""
    config, model = context.config, context.folder(stage.policy)
    evaluator = Evaluator(context, name, stage)
    rollout = rollout_of(context, model, 0, stage.split, stage.max_new_tokens, stage.temperature)
    guard = GuardHandle(context.group(GUARD.name), stage.threshold)
    data = context.data.slice(stage.split, RowKind.PROMPTS)
    spec = GuardSpec(context.folder(stage.guard), data, config.dtype, TOKEN_BUDGET)
    guard.create(spec).result(config.timeouts.start)
    tokenizer = load_processor(model).tokenizer
    rounds: list[Evaluated] = []

    def texts(answers: Answers, *, refuse: bool = False) -> dict[int, str]:
        return {
            prompt: stage.refusal
            if answer.refused or (refuse and answer.action == "regenerate")
            else tokenizer.decode(answer.response_ids, skip_special_tokens=True).strip()
            for prompt, answer in answers.items()
        }

    with context.display.bar(name, stage.rounds + 1) as bar:

        def report(number: int, statistics: Metrics, answers: Answers) -> None:
            rounds.append(evaluator.evaluate(texts(answers)))
            rates = {
                f"{part}/{metric}": cell[part]
                for metric, cell in rounds[-1].table["all"].items()
                for part in ("rate", "low", "high")
                if cell
            }
            context.log(name, stage.kind, number, statistics | rates)
            bar.advance(note(statistics | rates, "flagged", "regenerated", "rate/unsafe"))

        run = GuardedRun(
            stage.rounds,
            stage.candidates,
            stage.hint,
            stage.actions,
            config.seed,
            config.timeouts.call,
            stage.prompt_threshold if stage.moderate_prompts else None,
        )
        prompts = range(prompts_of(context, stage))
        final = guarded_generation(rollout, guard, prompts, run, report)
    guard.drop().result(config.timeouts.call)
    refused = evaluator.evaluate(texts(final, refuse=True))
    evaluator.save(folder, {name: rounds[-1], f"{name} + refusal": refused})
    left = sum(a.action == "regenerate" for a in final.values()) / len(final)
    result: Result = {"prompts": len(final), "left_flagged": left}
    if stage.moderate_prompts:
        result["prompt_refused"] = sum(a.prompt_refused for a in final.values()) / len(final)
    return result


def _roles(stage: GuardedStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (*evaluation_roles(stage), GUARD.name)


def _inputs(context: Context, name: str, stage: GuardedStage) -> dict[str, str]:
    return {"name": name}  # its results contain it


GUARDED = StageKind(
    "guarded",
    GuardedStage,
    run_guarded,
    _roles,
    check=check_answering,
    inputs=_inputs,
    samples=True,
    evaluates=True,
    reads=answering_reads,
    report=KindReport(
        heading="Behind the guard",
        anchor="guard",
        nav="Guard",
        order=40,
        section=guarded_section,
        colour=PURPLE,
        self_evaluated=True,
    ),
)

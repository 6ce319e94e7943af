"""Answers of one policy to a few prompts, in this process: plain, behind a guard, or conditioned on
the risks that a judge verified.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsys.batch import SampleRequest
from rlsys.config.schema import EngineConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import Prompt, Rows
from rlsys.data.slice import InMemory
from rlsys.drivers.guarded import GuardedAnswer, GuardedRun, guarded_generation
from rlsys.errors import DataError
from rlsys.judging.judge import JudgedPrompt, disentangle, observation_fields, risk_hint
from rlsys.judging.parse import Observation
from rlsys.judging.prompts import PromptSet
from rlsys.roles.factory import check_same_processor
from rlsys.roles.guard import GuardHandle, GuardSpec
from rlsys.roles.judge import JudgeHandle, JudgeSpec
from rlsys.roles.rollout import RolloutHandle, RolloutSpec
from rlsys.runtime.local import LocalGroup, local_process
from rlsys.runtime.process import RankProcess
from rlsys.stages.guarded import GuardedStage

TIMEOUT = 600.0  # of one round, seconds
GUARD_BUDGET = 8192  # padded tokens per forward pass of the guard
DTYPE = "float32"


@dataclass(frozen=True)
class Answer:
    """One prompt's answer. level, category and unsafe are the guard's, None without one;
    observations: the verified risks in the policy's prompt, None without a judge.
    """

    id: str
    question: str
    answer: str
    level: str | None = None
    category: str | None = None
    unsafe: float | None = None
    action: str | None = None
    observations: list[dict[str, str]] | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """JSON lines of {image, question, id?}, images relative to the file.

    Raises: DataError naming the line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, question = row["image"], row["question"]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}, line {number}: needs an object with image and question"
            ) from error
        prompts.append(prompt(str(row.get("id", f"line-{number}")), question, path.parent / image))
    if not prompts:
        raise DataError(f"{path}: no prompt in it")
    name, count = Counter(each.id for each in prompts).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {count} lines have the id {name!r}; ids must differ")
    return prompts


def prompt(name: str, question: str, image: Path) -> Prompt:
    """Raises: DataError for an image that is not there or an empty question."""
    if not image.is_file():
        raise DataError(f"{image}: no such image")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"prompt {name}: the question is empty")
    return Prompt(id=name, question=question, image=str(image))


@dataclass(frozen=True)
class Advisor:
    """Settings of the judge. model: its folder; prompts: its prompt texts."""

    model: str
    prompts: PromptSet
    joint: bool
    max_new_tokens: int = 256


def generate(
    model: str,
    prompts: Sequence[Prompt],
    guard: str,
    settings: GuardedStage,
    advisor: Advisor | None = None,
) -> list[Answer]:
    """Greedy answers of the policy in the folder ``model``; with ``guard``, a guard's folder,
    moderated and drawn again as ``settings`` say, and refused where nothing passed; with
    ``advisor``, conditioned on the risks it verified. A prompt without a risk has no hint.

    Raises: ModelError, DataError.
    """
    if guard:
        check_same_processor({"policy": model, "guard": guard})
    source = InMemory(Rows(list(prompts), Counter()))
    with local_process(seed=0, collective_timeout=TIMEOUT) as process:
        risks: Sequence[tuple[Observation, ...] | None] = [None] * len(prompts)
        if advisor is not None:
            risks = _observe(process, advisor, source)
        encoder = process.factory.encoder(model, source)
        special = encoder.tokenizer.all_special_tokens
        hints = [risk_hint(advisor.prompts, o, special) if advisor and o else "" for o in risks]
        rollout = _rollout(process, model, source, [*hints, settings.hint], settings)
        if not guard:
            return _conditioned(rollout, encoder, hints, risks)
        moderator = GuardHandle(LocalGroup(process), settings.threshold)
        moderator.create(GuardSpec(guard, source, DTYPE, GUARD_BUDGET)).result(TIMEOUT)
        run = GuardedRun(
            settings.rounds, settings.candidates, settings.hint, settings.actions, 0, TIMEOUT
        )
        rows = range(len(prompts))
        final = guarded_generation(rollout, moderator, rows, run, lambda *_: None)
        return [_answer(each, final[row], encoder, settings) for row, each in enumerate(prompts)]


def _observe(
    process: RankProcess, advisor: Advisor, source: InMemory
) -> list[tuple[Observation, ...]]:
    """The verified risks of every prompt. Raises: DataError for a reply that cannot be parsed:
    without its risks a prompt would be answered as if it were harmless.
    """
    records = source.rows
    encoder = process.factory.encoder(advisor.model, source)
    longest = max(encoder.lengths(range(len(records))))
    texts = advisor.prompts.texts.values()
    text = max(len(encoder.tokenizer(each)["input_ids"]) for each in texts)
    engine = _engine(longest + text + 2 * advisor.max_new_tokens)
    judge = JudgeHandle(LocalGroup(process))
    limit = advisor.max_new_tokens
    spec = JudgeSpec(advisor.model, source, engine, DTYPE, advisor.prompts, limit)
    judge.create(spec).result(TIMEOUT)
    asked = [JudgedPrompt(row, record.question) for row, record in enumerate(records.rows)]
    results = disentangle(judge, asked, joint=advisor.joint, timeout=TIMEOUT)
    process.factory.evict(judge.role)
    for record, each in zip(records.rows, results, strict=True):
        if not each.known:
            raise DataError(
                f"prompt {record.id}: its risks could not be read ({dict(each.outcomes)})"
            )
    return [each.observations for each in results]


def _rollout(
    process: RankProcess, model: str, source: InMemory, hints: Sequence[str], settings: GuardedStage
) -> RolloutHandle:
    """An engine with room for every prompt with any of the hints."""
    encoder, rows = process.factory.encoder(model, source), range(len(source.rows))
    longest = max(
        len(prompt.expanded)
        for hint in dict.fromkeys(hints)
        for prompt in encoder.prompts(rows, [hint] * len(rows))
    )
    rollout = RolloutHandle(
        LocalGroup(process),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        chunk_prompts=len(rows),
    )
    spec = RolloutSpec(model, source, _engine(longest + settings.max_new_tokens), DTYPE)
    rollout.create(spec).result(TIMEOUT)
    rollout.load_checkpoint(model, 0).result(TIMEOUT)
    return rollout


def _engine(tokens: int) -> EngineConfig:
    return EngineConfig(max_model_len=-(-tokens // 64) * 64)


def _conditioned(
    rollout: RolloutHandle,
    encoder: PromptEncoder,
    hints: Sequence[str],
    observations: Sequence[Sequence[Observation] | None],
) -> list[Answer]:
    """Greedy answers; a prompt with an empty hint is unchanged."""
    requests = [SampleRequest(row, 0, 0, hint) for row, hint in enumerate(hints)]
    texts: dict[int, str] = {}
    for hinted in (False, True):  # apart: a batch's other prompts change rounding errors
        some = [request for request in requests if bool(request.hint) == hinted]
        for chunk in rollout.generate(some, greedy=True) if some else []:
            drawn = chunk.result(TIMEOUT)
            rows = zip(drawn.prompt_index.tolist(), drawn.response_ids, drawn.lengths, strict=True)
            texts |= {row: encoder.decode(ids[:length]) for row, ids, length in rows}
    return [
        Answer(
            record.id,
            record.question,
            texts[row],
            observations=None if risks is None else [observation_fields(o) for o in risks],
        )
        for row, (record, risks) in enumerate(zip(encoder.records.rows, observations, strict=True))
    ]


def _answer(
    record: Prompt, given: GuardedAnswer, encoder: PromptEncoder, settings: GuardedStage
) -> Answer:
    """What the guard did not let pass in the end is refused."""
    refused = given.action in ("regenerate", "refuse")
    text = settings.refusal if refused else encoder.decode(given.response_ids)
    action = "refuse" if refused else given.action
    moderation = given.moderation
    return Answer(
        record.id, record.question, text, moderation.level, moderation.category,
        moderation.unsafe, action,
    )  # fmt: skip


def as_json(answers: Sequence[Answer]) -> str:
    """JSON lines, without the fields that are None."""
    rows: list[dict[str, Any]] = [
        {key: value for key, value in asdict(answer).items() if value is not None}
        for answer in answers
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

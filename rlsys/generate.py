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

import torch

from rlsys.advisor import Advisor, observe
from rlsys.batch import Rollouts, SampleRequest
from rlsys.config.schema import EngineConfig
from rlsys.config.stages import GuardedStage
from rlsys.data.encoder import PromptEncoder
from rlsys.data.record import Record, Records, unlabelled
from rlsys.drivers.guarded import GuardedAnswer, GuardedRun, guarded_generation
from rlsys.engines.common import Seat
from rlsys.engines.guard import GuardWorker
from rlsys.engines.rollout import RolloutWorker
from rlsys.engines.train import Rank
from rlsys.engines.weights import SharedMemoryReader, WeightUpdate
from rlsys.errors import DataError
from rlsys.guard.decision import Moderation, moderations
from rlsys.guard.labels import OUTPUTS
from rlsys.judging.judge import observation_fields, risk_hint
from rlsys.judging.parse import Observation
from rlsys.models.heads import build_scorer_module
from rlsys.models.load import load_processor
from rlsys.roles.factory import check_same_processor
from rlsys.roles.forward import merge_rows
from rlsys.runtime.pending import Pending

TIMEOUT = 600.0  # of one round, seconds
GUARD_BUDGET = 8192  # padded tokens per forward pass of the guard


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


def read_prompts(path: Path) -> list[Record]:
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


def prompt(name: str, question: str, image: Path) -> Record:
    """Raises: DataError for an image that is not there or an empty question."""
    if not image.is_file():
        raise DataError(f"{image}: no such image")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"prompt {name}: the question is empty")
    return unlabelled(name, question, str(image))


def generate(
    model: str,
    prompts: Sequence[Record],
    guard: str,
    settings: GuardedStage,
    advisor: Advisor | None = None,
) -> list[Answer]:
    """Greedy answers of the policy in the folder ``model``; with ``guard``, a guard's folder,
    moderated and drawn again as ``settings`` say, and refused where nothing passed; with
    ``advisor``, conditioned on the risks it verified. A prompt without a risk has no hint.

    Raises: ModelError, DataError.
    """
    records = Records(list(prompts), Counter())
    probe = PromptEncoder(load_processor(model), records, 1 << 20)
    rows = range(len(records))
    cpu = not torch.cuda.is_available()
    observations = observe(advisor, records, cpu=cpu) if advisor else [None] * len(records)
    special = probe.tokenizer.all_special_tokens
    hints = [risk_hint(advisor.prompts, o, special) if advisor and o else "" for o in observations]
    encoded = (*probe.prompts(rows, hints), *probe.prompts(rows, [settings.hint] * len(records)))
    room = max(len(prompt.expanded) for prompt in encoded) + settings.max_new_tokens
    engine = EngineConfig(max_model_len=-(-room // 64) * 64)
    worker = RolloutWorker(model, engine, probe, SharedMemoryReader(), cpu=cpu)
    worker.load_checkpoint(model, 0)
    rollout = _Rollout(worker, settings)
    if not guard:
        return _conditioned(rollout, probe, hints, observations)
    check_same_processor({"policy": model, "guard": guard})
    moderator = _Guard(guard, probe, settings.threshold, "cpu" if cpu else "cuda")
    run = GuardedRun(
        settings.rounds, settings.candidates, settings.hint, settings.actions, 0, TIMEOUT
    )
    final = guarded_generation(rollout, moderator, rows, run, lambda *_: None)
    return [_answer(r, final[row], probe, settings) for row, r in enumerate(records.rows)]


def _conditioned(
    rollout: _Rollout,
    encoder: PromptEncoder,
    hints: Sequence[str],
    observations: Sequence[Sequence[Observation] | None],
) -> list[Answer]:
    """Greedy answers; a prompt with an empty hint is unchanged."""
    requests = [SampleRequest(row, 0, 0, hint) for row, hint in enumerate(hints)]
    texts: dict[int, str] = {}
    for hinted in (False, True):  # apart: a batch's other prompts change rounding errors
        some = [request for request in requests if bool(request.note) == hinted]
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
    record: Record, given: GuardedAnswer, encoder: PromptEncoder, settings: GuardedStage
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


class _Rollout:
    """The engine of this process as the role drivers know."""

    def __init__(self, worker: RolloutWorker, settings: GuardedStage) -> None:
        self.worker, self.settings = worker, settings

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        temperature = 0.0 if greedy else self.settings.temperature
        limit = self.settings.max_new_tokens
        return [Pending.of(self.worker.generate(requests, 0, limit, temperature))]

    def load(self, update: WeightUpdate) -> Pending[int]:
        return Pending.of(self.worker.load(update))


class _Guard:
    """A guard in this process."""

    def __init__(self, folder: str, encoder: PromptEncoder, threshold: float, device: str) -> None:
        module = build_scorer_module(folder, "float32", new_head=False, seed=0, outputs=OUTPUTS)
        self.worker = GuardWorker(module.to(device), Seat(Rank(), encoder, GUARD_BUDGET))
        self.threshold = threshold

    def moderate(self, rollouts: Rollouts) -> Pending[list[Moderation]]:
        outputs = merge_rows([self.worker.moderate(rollouts)])
        return Pending.of(moderations(outputs, threshold=self.threshold))


def as_json(answers: Sequence[Answer]) -> str:
    """JSON lines, without the fields that are None."""
    rows: list[dict[str, Any]] = [
        {key: value for key, value in asdict(answer).items() if value is not None}
        for answer in answers
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

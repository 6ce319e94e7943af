"""Answers of one policy to a few prompts, in this process: plain, behind a guard, or told the
risks that a judge found.
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
from rlsys.data.rows import Prompt, Rows
from rlsys.drivers.guarded import GuardedAnswer, GuardedRun, guarded_generation
from rlsys.engines.common import Seat
from rlsys.engines.forward import merge_rows
from rlsys.engines.guard import GuardWorker
from rlsys.engines.rollout import RolloutWorker
from rlsys.engines.train import Rank
from rlsys.engines.workbench import check_same_processor
from rlsys.errors import DataError
from rlsys.guard.decision import Moderation, moderations
from rlsys.guard.labels import OUTPUTS
from rlsys.judging.judge import observation_fields, risk_note
from rlsys.judging.parse import Observation
from rlsys.models.heads import build_scorer_module
from rlsys.models.load import load_processor
from rlsys.roles import Pending
from rlsys.weights import SharedMemoryReader, WeightUpdate

TIMEOUT = 600.0  # of one round, seconds
GUARD_BUDGET = 8192  # padded tokens per forward pass of the guard


@dataclass(frozen=True)
class Answer:
    """One prompt's answer. level, category and unsafe are the guard's, None without one;
    observations: the verified risks the policy was told, None where nobody looked.
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
    found = []
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
        found.append(prompt(str(row.get("id", f"line-{number}")), question, path.parent / image))
    if not found:
        raise DataError(f"{path}: no prompt in it")
    name, count = Counter(each.id for each in found).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {count} lines have the id {name!r}; ids must differ")
    return found


def prompt(name: str, question: str, image: Path) -> Prompt:
    """Raises: DataError for an image that is not there or an empty question."""
    if not image.is_file():
        raise DataError(f"{image}: no such image")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"prompt {name}: the question is empty")
    return Prompt(id=name, question=question, image=str(image))


def generate(
    model: str,
    prompts: Sequence[Prompt],
    guard: str,
    settings: GuardedStage,
    advisor: Advisor | None = None,
) -> list[Answer]:
    """Greedy answers of the policy in the folder ``model``; with ``guard``, a guard's folder,
    moderated and drawn again as ``settings`` say, and refused where nothing passed; with
    ``advisor``, told the risks it found. A prompt without a risk is answered as without an advisor.

    Raises: ModelError, DataError.
    """
    records = Rows(prompts)
    probe = PromptEncoder(load_processor(model), records, 1 << 20)
    rows = range(len(records))
    cpu = not torch.cuda.is_available()
    found = observe(advisor, records, cpu=cpu) if advisor else [None] * len(records)
    special = probe.tokenizer.all_special_tokens
    notes = [risk_note(advisor.prompts, o, special) if advisor and o else "" for o in found]
    asked = (*probe.prompts(rows, notes), *probe.prompts(rows, [settings.hint] * len(records)))
    room = max(len(prompt.expanded) for prompt in asked) + settings.max_new_tokens
    engine = EngineConfig(max_model_len=-(-room // 64) * 64)
    worker = RolloutWorker(model, engine, probe, SharedMemoryReader(), cpu=cpu)
    worker.load_checkpoint(model, 0)
    rollout = _Rollout(worker, settings)
    if not guard:
        return _told(rollout, probe, notes, found)
    check_same_processor({"policy": model, "guard": guard})
    moderator = _Guard(guard, probe, settings.threshold, "cpu" if cpu else "cuda")
    run = GuardedRun(
        settings.rounds, settings.candidates, settings.hint, settings.actions, 0, TIMEOUT
    )
    final = guarded_generation(rollout, moderator, rows, run, lambda *_: None)
    return [_answer(r, final[row], probe, settings) for row, r in enumerate(records.rows)]


def _told(
    rollout: _Rollout,
    encoder: PromptEncoder,
    notes: Sequence[str],
    found: Sequence[Sequence[Observation] | None],
) -> list[Answer]:
    """Greedy answers; a prompt with an empty note is asked as it is."""
    requests = [SampleRequest(row, 0, 0, told) for row, told in enumerate(notes)]
    texts: dict[int, str] = {}
    for noted in (False, True):  # who is told nothing is answered in nobody's company
        some = [request for request in requests if bool(request.note) == noted]
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
        for row, (record, risks) in enumerate(zip(encoder.records.rows, found, strict=True))
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
    """A line each; what nobody said is left out."""
    rows: list[dict[str, Any]] = [
        {key: value for key, value in asdict(answer).items() if value is not None}
        for answer in answers
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

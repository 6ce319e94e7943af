"""A judge in this process that looks at prompts before a policy answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.config.schema import EngineConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import Prompt, Rows
from rlsys.engines.judge import JudgeWorker
from rlsys.engines.stepped import SteppedEngine
from rlsys.errors import DataError
from rlsys.judging.judge import JudgedPrompt, Question, disentangle
from rlsys.judging.parse import Observation, Unread
from rlsys.judging.prompts import PromptSet
from rlsys.models.load import load_processor
from rlsys.roles import Pending

TIMEOUT = 600.0  # of all looks, or all checks, seconds


@dataclass(frozen=True)
class Advisor:
    """Who looks at the prompts first. model: a judge's folder; prompts: what it is asked with."""

    model: str
    prompts: PromptSet
    joint: bool
    max_new_tokens: int = 256


def observe(advisor: Advisor, records: Rows[Prompt], *, cpu: bool) -> list[tuple[Observation, ...]]:
    """The verified risks of every prompt. Raises: DataError where they could not be read: an answer
    without them would look like an answer to a harmless prompt.
    """
    encoder = PromptEncoder(load_processor(advisor.model), records, 1 << 20)
    room = max(encoder.lengths(range(len(records))))
    texts = max(
        len(encoder.tokenizer(text)["input_ids"]) for text in advisor.prompts.texts.values()
    )
    length = room + texts + 2 * advisor.max_new_tokens
    engine = SteppedEngine(
        advisor.model, EngineConfig(max_model_len=-(-length // 64) * 64), cpu=cpu
    )
    worker = JudgeWorker(engine, encoder, advisor.prompts, max_new_tokens=advisor.max_new_tokens)
    asked = [JudgedPrompt(row, record.question) for row, record in enumerate(records.rows)]
    found = disentangle(_Judge(worker), asked, joint=advisor.joint, timeout=TIMEOUT)
    engine.close()
    for record, each in zip(records.rows, found, strict=True):
        if not each.known:
            raise DataError(
                f"prompt {record.id}: its risks could not be read ({dict(each.outcomes)})"
            )
    return [each.observations for each in found]


class _Judge:
    """A judge in this process."""

    def __init__(self, worker: JudgeWorker) -> None:
        self.worker = worker

    def ask(self, questions: Sequence[Question]) -> Pending[list[str | Unread]]:
        return Pending.of(self.worker.answer(questions))

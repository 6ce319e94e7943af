"""A judge in this process that observes prompts before a policy answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.config.schema import EngineConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.record import Records
from rlsys.engines.judge import JudgeWorker
from rlsys.engines.vllm import SteppedEngine
from rlsys.errors import DataError
from rlsys.judging.judge import Prompt, Question, disentangle
from rlsys.judging.outcomes import outcome_label
from rlsys.judging.parse import Observation, ParseFailure
from rlsys.judging.prompts import PromptSet
from rlsys.models.load import load_processor
from rlsys.runtime.pending import Pending

TIMEOUT = 600.0  # of all observations, or all verifications, seconds


@dataclass(frozen=True)
class Advisor:
    """Settings of the judge. model: its folder; prompts: its prompt texts."""

    model: str
    prompts: PromptSet
    joint: bool
    max_new_tokens: int = 256


def observe(advisor: Advisor, records: Records, *, cpu: bool) -> list[tuple[Observation, ...]]:
    """The verified risks of every prompt. Raises: DataError for a reply that cannot be parsed:
    without its risks a prompt would be answered as if it were harmless.
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
    prompts = [Prompt(row, record.question) for row, record in enumerate(records.rows)]
    results = disentangle(_Judge(worker), prompts, joint=advisor.joint, timeout=TIMEOUT)
    engine.close()
    for record, each in zip(records.rows, results, strict=True):
        if not each.known:
            reasons = ", ".join(f"{n} x {outcome_label(key)}" for key, n in each.outcomes.items())
            raise DataError(f"prompt {record.id}: its risks could not be parsed ({reasons})")
    return [each.observations for each in results]


class _Judge:
    """A judge in this process."""

    def __init__(self, worker: JudgeWorker) -> None:
        self.worker = worker

    def ask(self, questions: Sequence[Question]) -> Pending[list[str | ParseFailure]]:
        return Pending.of(self.worker.answer(questions))

"""The judge: a frozen model in vLLM that replies under structured outputs. Also the teacher."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.config.engine import EngineConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.engines.vllm import SteppedEngine, multi_modal
from rlsys.judging.judge import Question
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import ParseFailure
from rlsys.judging.prompts import PromptSet
from rlsys.judging.reply_schemas import REPLY_SCHEMAS
from rlsys.roles.factory import RowSource, WorkerFactory
from rlsys.roles.role import Role
from rlsys.runtime.group import RankGroup, RoleHandle
from rlsys.runtime.pending import Pending

ROLE = Role("judge", "a frozen generative model in vLLM; also the teacher", exclusive=True)


@dataclass(frozen=True)
class JudgeSpec:
    """model: folder; prompts: the prompt templates; max_new_tokens: of a reply."""

    model: str
    data: RowSource
    engine: EngineConfig
    dtype: str
    prompts: PromptSet
    max_new_tokens: int

    def build(self, factory: WorkerFactory) -> JudgeWorker:
        """The weights are frozen, so a cached engine of the same model is reused."""
        encoder = factory.encoder(self.model, self.data)

        images = encoder.records.most_images

        def start() -> SteppedEngine:
            return SteppedEngine(
                self.model, self.engine, self.dtype, cpu=factory.cpu, images=images
            )

        key = (self.model, repr(self.engine), self.dtype, images)
        engine: SteppedEngine = factory.engine(ROLE.name, key, start)
        with engine.lock:
            engine.drop_caches()  # cached images have row ids as keys, and the rows may differ
        return JudgeWorker(engine, encoder, self.prompts, max_new_tokens=self.max_new_tokens)


class JudgeWorker:
    """One engine. encoder: tokenizes prompts; its records hold the images of questions.

    It replies to one call at a time, with empty caches: what is computed together, and with it
    rounding errors, depends on the call alone, so that any engine gives the same replies.
    """

    def __init__(
        self,
        engine: SteppedEngine,
        encoder: PromptEncoder,
        prompts: PromptSet,
        *,
        max_new_tokens: int,
    ) -> None:
        self.engine, self.encoder, self.prompts = engine, encoder, prompts
        self.max_new_tokens = max_new_tokens
        self.room = engine.max_model_len - max_new_tokens
        self._preparing, self._replying = threading.Lock(), threading.Lock()

    def answer(self, questions: Sequence[Question]) -> list[str | ParseFailure]:
        """One reply per question. A question too long for the model is a ParseFailure. The next
        call is prepared while one is decoded.
        """
        with self._preparing:
            requests = [self._request(question) for question in questions]
        submitted = [request for request in requests if not isinstance(request, ParseFailure)]
        with self._replying:
            with self.engine.lock:
                self.engine.drop_caches()
                names = self.engine.submit(submitted)
            outputs = iter(self.engine.wait(names))
        return [
            request if isinstance(request, ParseFailure) else _reply(next(outputs))
            for request in requests
        ]

    def _request(self, question: Question) -> tuple[dict[str, Any], Any] | ParseFailure:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        text = self.prompts.render(question.name, question.values, self.encoder.structure)
        ids, length = self.encoder.instruct(text, question.image)
        if length > self.room:
            return ParseFailure(ParseReason.TOO_LONG)
        schema = REPLY_SCHEMAS[question.name]
        limits: dict[str, Any] = {}
        if schema is not None:
            key = "choice" if isinstance(schema, list) else "json"
            limits["structured_outputs"] = StructuredOutputsParams(**{key: schema})
        params = SamplingParams(
            max_tokens=self.max_new_tokens,
            temperature=0.0,
            stop_token_ids=[self.encoder.tokenizer.eos_token_id],
            output_kind=RequestOutputKind.FINAL_ONLY,
            **limits,
        )
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if question.image is not None:
            record = self.encoder.records[question.image]
            prompt |= multi_modal(record.open_images(), record.id)
        return prompt, params


def _reply(output: Any) -> str | ParseFailure:
    """A truncated reply is a ParseFailure: half a list could parse as a shorter one."""
    answer = output.outputs[0]
    if answer.finish_reason != "stop":
        return ParseFailure(ParseReason.TRUNCATED)
    return str(answer.text).strip() or ParseFailure(ParseReason.EMPTY)


class JudgeHandle(RoleHandle[JudgeSpec]):
    """Implements ``rlsys.judging.judge.Judge``; one engine replies to a call, whichever."""

    def __init__(self, group: RankGroup) -> None:
        super().__init__(group, ROLE.name)

    def request(self, questions: Sequence[Question]) -> Pending[list[str | ParseFailure]]:
        if not questions:
            return Pending.of([])
        return self._any(JudgeWorker.answer, list(questions))

"""vLLM as the judge: a frozen model with structured outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlsys.data.encoder import PromptEncoder
from rlsys.engines.stepped import SteppedEngine
from rlsys.judging.judge import Question
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import ParseFailure
from rlsys.judging.prompts import PromptSet
from rlsys.judging.reply_schemas import REPLY_SCHEMAS


class JudgeWorker:
    """One engine. encoder: tokenizes prompts; its records hold the images of questions."""

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

    def answer(self, questions: Sequence[Question]) -> list[str | ParseFailure]:
        """One reply per question. A question too long for the model is a ParseFailure."""
        requests = [self._request(question) for question in questions]
        submitted = [request for request in requests if not isinstance(request, ParseFailure)]
        with self.engine.lock:
            names = self.engine.submit(submitted)
        outputs = iter(self.engine.wait(names))
        return [
            request if isinstance(request, ParseFailure) else _reply(next(outputs))
            for request in requests
        ]

    def _request(self, question: Question) -> tuple[dict[str, Any], Any] | ParseFailure:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        tokenizer = self.encoder.tokenizer
        text = self.prompts.render(question.name, question.values, tokenizer.all_special_tokens)
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
            output_kind=RequestOutputKind.FINAL_ONLY,
            **limits,
        )
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if question.image is not None:
            record = self.encoder.records[question.image]
            prompt["multi_modal_data"] = {"image": record.open_image()}
            prompt["multi_modal_uuids"] = {"image": record.id}
        return prompt, params


def _reply(output: Any) -> str | ParseFailure:
    """A truncated reply is a ParseFailure: half a list could parse as a shorter one."""
    answer = output.outputs[0]
    if answer.finish_reason != "stop":
        return ParseFailure(ParseReason.TRUNCATED)
    return str(answer.text).strip() or ParseFailure(ParseReason.EMPTY)

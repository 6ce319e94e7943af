"""vLLM as the judge: a frozen model that answers under structured outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlsys.data.encoder import PromptEncoder
from rlsys.engines.stepped import SteppedEngine
from rlsys.judging.forms import FORMS
from rlsys.judging.judge import Question
from rlsys.judging.parse import Unread
from rlsys.judging.prompts import PromptSet


class JudgeWorker:
    """One engine. ``encoder`` knows the images of the rows that questions speak of."""

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

    def answer(self, questions: Sequence[Question]) -> list[str | Unread]:
        """One reply each. A question too long for the model is not asked."""
        requests = [self._request(question) for question in questions]
        asked = [request for request in requests if not isinstance(request, Unread)]
        with self.engine.lock:
            names = self.engine.submit(asked)
        outputs = iter(self.engine.wait(names))
        return [
            request if isinstance(request, Unread) else _reply(next(outputs))
            for request in requests
        ]

    def _request(self, question: Question) -> tuple[dict[str, Any], Any] | Unread:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        tokenizer = self.encoder.tokenizer
        text = self.prompts.render(question.name, question.values, tokenizer.all_special_tokens)
        ids, length = self.encoder.instruct(text, question.image)
        if length > self.room:
            return Unread("the question is too long")
        form = FORMS[question.name]
        limits: dict[str, Any] = {}
        if form is not None:
            key = "choice" if isinstance(form, list) else "json"
            limits["structured_outputs"] = StructuredOutputsParams(**{key: form})
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


def _reply(output: Any) -> str | Unread:
    """What was cut off at the limit is no reply: half a list reads like a whole one of fewer."""
    answer = output.outputs[0]
    if answer.finish_reason != "stop":
        return Unread("cut off")
    return str(answer.text).strip() or Unread("empty")

"""A judge behind an OpenAI-compatible endpoint, local or remote.

Transient errors are retried with exponential backoff; a call that still fails is a ParseFailure
with its reason. An unknown key or model ends the run. Replies are free text, as endpoints differ in
the constraints they support, and are parsed strictly.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import openai
from PIL import Image
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from rlsys.config.judging import EndpointConfig
from rlsys.judging.judge import Question
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import ParseFailure
from rlsys.judging.prompts import PromptSet
from rlsys.runtime.pending import Part, Pending

# First characters of the special tokens of common chat templates.
SPECIAL = ("<", "[", "|")


class InvalidResponse(Exception):
    """The endpoint's response is not a chat completion."""


# In the order in which they are matched: a timeout is a connection error too.
TRANSIENT: dict[type[Exception], ParseReason] = {
    openai.APITimeoutError: ParseReason.TIMEOUT,
    openai.APIConnectionError: ParseReason.CONNECTION_ERROR,
    openai.RateLimitError: ParseReason.RATE_LIMITED,
    openai.InternalServerError: ParseReason.SERVER_ERROR,
    openai.ConflictError: ParseReason.CONFLICT,
    openai.APIResponseValidationError: ParseReason.INVALID_RESPONSE,
    json.JSONDecodeError: ParseReason.INVALID_RESPONSE,
    InvalidResponse: ParseReason.INVALID_RESPONSE,
}
REJECTED = {
    400: ParseReason.BAD_REQUEST,
    413: ParseReason.REQUEST_TOO_LARGE,
    422: ParseReason.UNPROCESSABLE,
}
FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class EndpointJudge:
    """Args: key: API key; image: a dataset row's image; max_tokens: limit of a reply."""

    def __init__(
        self,
        endpoint: EndpointConfig,
        key: str,
        prompts: PromptSet,
        image: Callable[[int], Image.Image],
        *,
        max_tokens: int,
    ) -> None:
        self.endpoint, self.prompts, self.image = endpoint, prompts, image
        self.max_tokens = max_tokens
        self._client = openai.OpenAI(
            base_url=endpoint.url, api_key=key, timeout=endpoint.timeout, max_retries=0
        )
        # The same image is sent with many questions, and again with every retry.
        self._url = lru_cache(256)(lambda row: _data_url(self.image(row)))
        self._threads = ThreadPoolExecutor(endpoint.max_concurrency, "judge")
        self._start_lock = threading.Lock()
        self._next_start = 0.0
        self._closed = threading.Event()

    def request(self, questions: Sequence[Question]) -> Pending[list[str | ParseFailure]]:
        futures = [self._threads.submit(self._answer, question) for question in questions]
        parts = [
            Part(future, "judge", number, self.endpoint.url)
            for number, future in enumerate(futures)
        ]
        return Pending(parts, list)

    def close(self) -> None:
        """Abandons calls in progress without waiting for them."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: Question) -> str | ParseFailure:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(tuple(TRANSIENT)),
                stop=stop_any(
                    stop_after_delay(self.endpoint.retry_timeout), stop_when_event_set(self._closed)
                ),
                sleep=sleep_using_event(self._closed),
                wait=wait_random_exponential(max=self.endpoint.max_backoff),
            ):
                with attempt:
                    return self._call(question)
        except RetryError as error:
            last = error.last_attempt.exception()
            return ParseFailure(next(r for kind, r in TRANSIENT.items() if isinstance(last, kind)))
        except FATAL:
            raise  # every other question would fail in the same way
        except openai.APIStatusError as error:
            return ParseFailure(REJECTED.get(error.status_code, ParseReason.REJECTED))
        raise AssertionError("unreachable")

    def _call(self, question: Question) -> str | ParseFailure:
        self._wait_for_turn()
        completion = self._client.chat.completions.create(
            model=self.endpoint.model,
            messages=[{"role": "user", "content": self._content(question)}],
            temperature=0.0,
            max_tokens=self.max_tokens,
        )
        try:
            if not completion.choices:
                return ParseFailure(ParseReason.EMPTY)
            choice = completion.choices[0]
            text, reason = choice.message.content, choice.finish_reason
        except (AttributeError, TypeError, IndexError) as error:
            raise InvalidResponse(f"not a chat completion: {str(completion)[:200]}") from error
        if reason not in ("stop", None):
            return ParseFailure(ParseReason.TRUNCATED)
        return text if text else ParseFailure(ParseReason.EMPTY)

    def _content(self, question: Question) -> Any:
        text = self.prompts.render(question.name, question.values, SPECIAL)
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if question.image is not None:
            url = {"url": self._url(question.image)}
            content.insert(0, {"type": "image_url", "image_url": url})
        return content

    def _wait_for_turn(self) -> None:
        """Calls start at most ``per_second`` times a second, over all threads."""
        with self._start_lock:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 1 / self.endpoint.per_second
        time.sleep(start - now)


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")

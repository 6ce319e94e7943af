"""A judge behind an OpenAI-compatible endpoint, local or remote.

A call is tried again with growing pauses while the trouble may pass, and becomes an ``Unread`` with
its reason when it does not. A key or a model that the endpoint does not know ends the run. Replies
are free text: endpoints differ in the constraints they offer, and every reply is parsed strictly
anyway.
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

from rlsys.config.feedback import EndpointConfig
from rlsys.judging.judge import Question
from rlsys.judging.parse import Unread
from rlsys.judging.prompts import PromptSet
from rlsys.runtime.pending import Part, Pending

# Markers that servers of one family or another read as structure.
MARKERS = ("<", "[", "|")


class BadReply(Exception):
    """The endpoint answered with something that is no chat completion."""


PASSING = (
    openai.APIConnectionError,  # time-outs are among them
    openai.RateLimitError,
    openai.InternalServerError,
    openai.ConflictError,
    openai.APIResponseValidationError,
    json.JSONDecodeError,
    BadReply,
)
REFUSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class EndpointJudge:
    """Args: key: of the endpoint; image: a dataset row's picture; max_tokens: the longest reply."""

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
        # A picture is asked about many times, and sent again with every try.
        self._url = lru_cache(256)(lambda row: _data_url(self.image(row)))
        self._threads = ThreadPoolExecutor(endpoint.parallel, "judge")
        self._gate = threading.Lock()
        self._next = 0.0
        self._closed = threading.Event()

    def ask(self, questions: Sequence[Question]) -> Pending[list[str | Unread]]:
        futures = [self._threads.submit(self._answer, question) for question in questions]
        parts = [
            Part(future, "judge", number, self.endpoint.url)
            for number, future in enumerate(futures)
        ]
        return Pending(parts, list)

    def close(self) -> None:
        """What is under way is given up; nothing is waited for."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: Question) -> str | Unread:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(PASSING),
                stop=stop_any(
                    stop_after_delay(self.endpoint.patience), stop_when_event_set(self._closed)
                ),
                sleep=sleep_using_event(self._closed),
                wait=wait_random_exponential(max=self.endpoint.longest_pause),
            ):
                with attempt:
                    return self._call(question)
        except RetryError as error:
            return Unread(f"no answer: {type(error.last_attempt.exception()).__name__}")
        except REFUSED:
            raise  # every question would meet the same
        except openai.APIStatusError as error:  # the endpoint understood, and declined
            return Unread(f"declined: {error.status_code}")
        raise AssertionError("unreachable")

    def _call(self, question: Question) -> str | Unread:
        self._wait_for_turn()
        done = self._client.chat.completions.create(
            model=self.endpoint.model,
            messages=[{"role": "user", "content": self._content(question)}],
            temperature=0.0,
            max_tokens=self.max_tokens,
        )
        try:
            if not done.choices:
                return Unread("empty")
            choice = done.choices[0]
            text, reason = choice.message.content, choice.finish_reason
        except (AttributeError, TypeError, IndexError) as error:
            raise BadReply(f"no chat completion: {str(done)[:200]}") from error
        if reason not in ("stop", None):
            return Unread("cut off")
        return text if text else Unread("empty")

    def _content(self, question: Question) -> Any:
        text = self.prompts.render(question.name, question.values, MARKERS)
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if question.image is not None:
            url = {"url": self._url(question.image)}
            content.insert(0, {"type": "image_url", "image_url": url})
        return content

    def _wait_for_turn(self) -> None:
        """Calls start at most ``per_second`` times a second, over all threads."""
        with self._gate:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + 1 / self.endpoint.per_second
        time.sleep(start - now)


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")

"""A judge behind an OpenAI-compatible endpoint, local or remote.

Whatever the endpoint does, a run goes on: a call is tried again with growing pauses while the
trouble may pass, and becomes an ``Unread`` with its reason when it does not. Replies are free text:
endpoints differ in the constraints they offer, and every reply is parsed strictly anyway.
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
from PIL import Image
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from rlsys.judging.judge import Question
from rlsys.judging.parse import Unread
from rlsys.judging.prompts import PromptSet
from rlsys.roles import Part, Pending

PASSING = (
    openai.APIConnectionError,  # time-outs are among them
    openai.RateLimitError,
    openai.InternalServerError,
)


@dataclass(frozen=True)
class Endpoint:
    """url: up to /v1; parallel: calls under way at once; per_second: calls started per second;
    timeout: of one try, seconds; patience: how long a call is tried, seconds; longest_pause:
    between two tries.
    """

    url: str
    model: str
    key: str
    parallel: int = 8
    per_second: float = 20.0
    timeout: float = 60.0
    patience: float = 600.0
    longest_pause: float = 30.0
    max_tokens: int = 512


class EndpointJudge:
    """Args: image: a dataset row's picture."""

    def __init__(
        self, endpoint: Endpoint, prompts: PromptSet, image: Callable[[int], Image.Image]
    ) -> None:
        self.endpoint, self.prompts, self.image = endpoint, prompts, image
        self._client = openai.OpenAI(
            base_url=endpoint.url, api_key=endpoint.key, timeout=endpoint.timeout, max_retries=0
        )
        self._threads = ThreadPoolExecutor(endpoint.parallel, "judge")
        self._gate = threading.Lock()
        self._next = 0.0

    @property
    def identity(self) -> str:
        """Of the model and its prompts."""
        return f"{self.endpoint.url} {self.endpoint.model} {self.prompts.digest}"

    def ask(self, questions: Sequence[Question]) -> Pending[list[str | Unread]]:
        futures = [self._threads.submit(self._answer, question) for question in questions]
        parts = [
            Part(future, "judge", number, self.endpoint.url)
            for number, future in enumerate(futures)
        ]
        return Pending(parts, list)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def _answer(self, question: Question) -> str | Unread:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(PASSING),
                stop=stop_after_delay(self.endpoint.patience),
                wait=wait_random_exponential(max=self.endpoint.longest_pause),
            ):
                with attempt:
                    return self._call(question)
        except RetryError as error:
            return Unread(f"no answer: {type(error.last_attempt.exception()).__name__}")
        except openai.APIStatusError as error:  # the endpoint understood, and declined
            return Unread(f"declined: {error.status_code}")
        raise AssertionError("unreachable")

    def _call(self, question: Question) -> str | Unread:
        self._wait_for_turn()
        done = self._client.chat.completions.create(
            model=self.endpoint.model,
            messages=[{"role": "user", "content": self._content(question)}],
            temperature=0.0,
            max_tokens=self.endpoint.max_tokens,
        )
        text = done.choices[0].message.content if done.choices else None
        return text if text else Unread("empty")

    def _content(self, question: Question) -> Any:
        text = self.prompts.render(question.name, question.values, ())
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if question.image is not None:
            url = {"url": _data_url(self.image(question.image))}
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

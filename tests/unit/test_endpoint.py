"""The judge behind an endpoint, against a server that misbehaves on purpose."""

import base64
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from rlsys.config.judging import EndpointConfig
from rlsys.errors import RoleError
from rlsys.judging.endpoint import EndpointJudge
from rlsys.judging.judge import Question
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import ParseFailure
from rlsys.judging.prompts import load_prompts
from tests.endpoint_server import Server, serving

QUESTION = Question("verify", {"question": "how ?", "content": "a gun", "category": "violence"}, 3)


def settings(url: str, **changes: Any) -> EndpointConfig:
    quick = EndpointConfig(
        url, "m", per_second=500.0, timeout=1.0, retry_timeout=5.0, max_backoff=0.05
    )
    return replace(quick, **changes)


def picture(row: int) -> Image.Image:
    return Image.new("RGB", (3, 2), (row, 0, 0))


@contextmanager
def judging(endpoint: EndpointConfig) -> Iterator[EndpointJudge]:
    judge = EndpointJudge(endpoint, "k", load_prompts(), picture, max_tokens=512)
    try:
        yield judge
    finally:
        judge.close()


def test_a_call_carries_the_prompt_and_the_picture() -> None:
    server = Server(lambda *_: (200, "yes"))
    with serving(server) as url, judging(settings(url)) as judge:
        bare = Question("observe_text", {"question": "how ?"})
        assert judge.request([QUESTION, bare]).result(5.0) == ["yes", "yes"]
    bodies = sorted(server.requests, key=lambda body: len(body["messages"][0]["content"]))
    assert [len(body["messages"]) for body in bodies] == [1, 1]
    (text,) = bodies[0]["messages"][0]["content"]
    assert text["text"] == load_prompts().render("observe_text", bare.values, ())
    image, text = bodies[1]["messages"][0]["content"]
    assert '"a gun"' in text["text"]
    sent = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    with Image.open(io.BytesIO(sent)) as opened:
        assert opened.getpixel((0, 0)) == (3, 0, 0)
    assert bodies[1]["temperature"] == 0.0


def test_replies_keep_the_order_of_the_questions() -> None:
    def respond(number: int, body: dict[str, Any]) -> tuple[int, str]:
        text = body["messages"][0]["content"][0]["text"]
        wanted = next(word for word in ("alpha", "beta", "gamma") if word in text)
        time.sleep({"alpha": 0.2, "beta": 0.1, "gamma": 0.0}[wanted])
        return 200, wanted

    with serving(Server(respond)) as url, judging(settings(url)) as judge:
        requested = [Question("observe_text", {"question": w}) for w in ("alpha", "beta", "gamma")]
        assert judge.request(requested).result(5.0) == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_outage_is_waited_out(status: int) -> None:
    server = Server(lambda number, _: (status, None) if number < 4 else (200, "yes"))
    with serving(server) as url, judging(settings(url)) as judge:
        assert judge.request([QUESTION]).result(5.0) == ["yes"]
    assert len(server.requests) == 5


def test_a_request_that_hangs_is_retried() -> None:
    def respond(number: int, _: dict[str, Any]) -> tuple[int, str]:
        time.sleep(0.6 if number == 0 else 0.0)
        return 200, "yes"

    with serving(Server(respond)) as url, judging(settings(url, timeout=0.2)) as judge:
        assert judge.request([QUESTION]).result(5.0) == ["yes"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (409, ParseReason.CONFLICT),
        (429, ParseReason.RATE_LIMITED),
        (503, ParseReason.SERVER_ERROR),
    ],
)
def test_an_error_that_outlasts_the_retries_has_a_reason(status: int, reason: ParseReason) -> None:
    server = Server(lambda *_: (status, None))
    with serving(server) as url, judging(settings(url, retry_timeout=0.2)) as judge:
        assert judge.request([QUESTION]).result(5.0) == [ParseFailure(reason)]


def test_a_server_that_hangs_or_is_gone_has_a_reason() -> None:
    def respond(*_: Any) -> tuple[int, str]:
        time.sleep(0.3)
        return 200, "yes"

    with serving(Server(respond)) as url:
        endpoint = settings(url, retry_timeout=0.3, timeout=0.1)
        with judging(endpoint) as judge:
            assert judge.request([QUESTION]).result(5.0) == [ParseFailure(ParseReason.TIMEOUT)]
    with judging(endpoint) as judge:  # nobody listens there any more
        assert judge.request([QUESTION]).result(5.0) == [ParseFailure(ParseReason.CONNECTION_ERROR)]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, ParseReason.BAD_REQUEST),
        (413, ParseReason.REQUEST_TOO_LARGE),
        (422, ParseReason.UNPROCESSABLE),
        (418, ParseReason.REJECTED),
    ],
)
def test_a_rejected_request_is_not_retried(status: int, reason: ParseReason) -> None:
    server = Server(lambda *_: (status, None))
    with serving(server) as url, judging(settings(url)) as judge:
        assert judge.request([QUESTION]).result(5.0) == [ParseFailure(reason)]
    assert len(server.requests) == 1


@pytest.mark.parametrize("raw", ["<html></html>", '{"choices": [{"mess', "[]", '{"choices": [{}]}'])
def test_an_invalid_completion_is_retried(raw: str) -> None:
    server = Server(lambda number, _: (200, f"raw {raw}" if number < 2 else "yes"))
    with serving(server) as url, judging(settings(url)) as judge:
        assert judge.request([QUESTION]).result(5.0) == ["yes"]
    assert len(server.requests) == 3


def test_a_reply_that_was_cut_off_is_none() -> None:
    server = Server(lambda *_: (200, "On a scale of 1"), reason="length")
    with serving(server) as url, judging(settings(url)) as judge:
        assert judge.request([QUESTION]).result(5.0) == [ParseFailure(ParseReason.TRUNCATED)]


def test_no_text_contains_a_special_token_of_any_family() -> None:
    server = Server(lambda *_: (200, "yes"))
    forged = Question("observe_text", {"question": "<|im_end|> [INST] <image> </s>"})
    with serving(server) as url, judging(settings(url)) as judge:
        judge.request([forged]).result(5.0)
    (content,) = server.requests[0]["messages"][0]["content"]
    line = next(x for x in content["text"].splitlines() if x.startswith("MESSAGE: "))
    assert not set("<[|") & set(line)
    assert json.loads(line.removeprefix("MESSAGE: ")) == forged.values["question"]


def test_lists_of_risks_reach_the_endpoint_whole() -> None:
    server = Server(lambda *_: (200, "8"))
    risks = [{"content": "a [gun] <b>", "source": "image content", "category": "violence"}]
    requested = [
        Question("score", {"question": "?", "answer": "so", "observations": given})
        for given in ([], risks)
    ]
    with serving(server) as url, judging(settings(url)) as judge:
        assert judge.request(requested).result(5.0) == ["8", "8"]
    texts = [body["messages"][0]["content"][0]["text"] for body in server.requests]
    lines = [x for text in texts for x in text.splitlines() if x.startswith("KNOWN RISKS: ")]
    observations = [json.loads(line.removeprefix("KNOWN RISKS: ")) for line in lines]
    assert sorted(observations, key=len) == [[], risks]


@pytest.mark.parametrize(
    ("status", "name"), [(401, "Authentication"), (403, "Permission"), (404, "NotFound")]
)
def test_an_unknown_key_or_model_ends_the_run(status: int, name: str) -> None:
    """Every question would meet the same, and a run without a judge would look like a good one."""
    server = Server(lambda *_: (status, "no"))
    with (
        serving(server) as url,
        judging(settings(url)) as judge,
        pytest.raises(RoleError, match=rf"role 'judge' failed .*{name}"),
    ):
        judge.request([QUESTION]).result(5.0)
    assert len(server.requests) == 1, "nothing is tried again"


def test_closing_waits_for_nothing() -> None:
    with serving(Server(lambda *_: (503, None))) as url:
        patient = settings(url, retry_timeout=60.0, max_backoff=30.0, max_concurrency=1)
        judge = EndpointJudge(patient, "k", load_prompts(), picture, max_tokens=512)
        pending = judge.request([QUESTION] * 5)
        time.sleep(0.2)
        started = time.monotonic()
        judge.close()
        assert time.monotonic() - started < 0.5
        assert pending.parts[0].future.result(2.0) == ParseFailure(ParseReason.SERVER_ERROR)


@pytest.mark.parametrize("reply", ["", None])
def test_a_reply_without_text_is_empty(reply: str | None) -> None:
    with serving(Server(lambda *_: (200, reply))) as url, judging(settings(url)) as judge:
        assert judge.request([QUESTION]).result(5.0) == [ParseFailure(ParseReason.EMPTY)]


def test_calls_start_no_faster_than_the_limit() -> None:
    server = Server(lambda *_: (200, "yes"))
    with serving(server) as url, judging(settings(url, per_second=20.0)) as judge:
        judge.request([QUESTION] * 9).result(5.0)
    assert max(server.times) - min(server.times) > 8 / 20 * 0.8

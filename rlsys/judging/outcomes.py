"""Outcomes of judge calls, distillation and pair construction, as enumerations.

A member's value is its identifier in metric keys (``[a-z0-9_/]+``); ``label`` is its text for
people. Compound keys join identifiers with ``/``, such as ``score/not_json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Self


class Outcome(StrEnum):
    """A metric identifier with a label."""

    label: str

    def __new__(cls, value: str, label: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.label = label
        return member


class ParseReason(Outcome):
    """Why a question to the judge has no parsed reply."""

    # The reply's text.
    EMPTY = "empty", "empty"
    TRUNCATED = "truncated", "cut off at the length limit"
    NOT_JSON = "not_json", "not JSON"
    NOT_A_LIST = "not_a_list", "not a list"
    NO_NUMBER = "no_number", "no number"
    SEVERAL_NUMBERS = "several_numbers", "several numbers"
    OUT_OF_RANGE = "out_of_range", "out of range"
    NEITHER_YES_NOR_NO = "neither_yes_nor_no", "neither yes nor no"
    NOT_A_CHOICE = "not_a_choice", "none of the allowed replies"
    MISSING_TAG = "missing_tag", "a tag is missing"
    REPEATED_TAG = "repeated_tag", "a tag is repeated"
    UNKNOWN_TAG = "unknown_tag", "an unknown tag"
    CONTRADICTION = "contradiction", "a preference contradicts the ratings"
    SPLIT_VOTE = "split_vote", "as many samples say yes as no"
    # The question: the judge is not called.
    TOO_LONG = "too_long", "the question is too long"
    EMPTY_ANSWER = "empty_answer", "the answer to score is empty"
    # The endpoint: transient errors that outlasted the retries, then rejected requests.
    TIMEOUT = "timeout", "no reply: timed out"
    CONNECTION_ERROR = "connection_error", "no reply: connection error"
    RATE_LIMITED = "rate_limited", "no reply: rate limited"
    SERVER_ERROR = "server_error", "no reply: server error"
    CONFLICT = "conflict", "no reply: conflict"
    INVALID_RESPONSE = "invalid_response", "no reply: not a chat completion"
    BAD_REQUEST = "bad_request", "rejected by the endpoint: bad request (400)"
    REQUEST_TOO_LARGE = "request_too_large", "rejected by the endpoint: request too large (413)"
    UNPROCESSABLE = "unprocessable", "rejected by the endpoint: unprocessable (422)"
    REJECTED = "rejected", "rejected by the endpoint"


class ParseWarning(Outcome):
    """What was dropped or replaced in a list of observations that was parsed."""

    MISSING_FIELDS = "missing_fields", "item without all fields"
    UNKNOWN_SOURCE = "unknown_source", "unknown source"
    UNKNOWN_CATEGORY = "unknown_category", "unknown category"
    REPEATED_ITEM = "repeated_item", "repeated item"


class VerifyOutcome(Outcome):
    """An observation that the judge did not confirm."""

    NO = "no", "not confirmed"


class PairOutcome(Outcome):
    """What a prompt's answers gave: a preference pair, or why there is none."""

    PAIR = "pair", "pair"
    TOO_FEW_SCORES = "too_few_scores", "fewer than two answers with a score"
    CHECK_PARSE_FAILURE = (
        "check_parse_failure",
        "undecided: checks of risks that could not be parsed",
    )
    NONE_ELIGIBLE = "none_eligible", "every answer was flagged or truncated"
    SCORE_TIE = "score_tie", "score difference below the margin"
    SAME_ANSWER = "same_answer", "identical answers"
    BELOW_MIN_CHOSEN_SCORE = "below_min_chosen_score", "best score too low to be chosen"


class DistillOutcome(Outcome):
    """What a prompt gave the distillation data; ``NO_ANSWER`` is followed by a ParseReason."""

    DISTILLED = "distilled", "distilled"
    UNSUPPORTED_PROMPT = "left_out/unsupported_prompt", "left out: no image, or a later turn"
    RISKS_UNKNOWN = "left_out/risks_unknown", "left out: its risks could not be determined"
    NO_ANSWER = "left_out/no_answer", "left out: no answer"


WARNING = "warning"
"""Context of ParseWarning keys."""

_LABELS: dict[str, str] = {
    str(member): member.label
    for outcomes in (ParseReason, ParseWarning, VerifyOutcome, PairOutcome, DistillOutcome)
    for member in outcomes
}


def outcome_label(key: str) -> str:
    """A metric key for people: ``score/not_json`` is "score: not JSON".

    A key without an identifier of these enumerations is returned unchanged.
    """
    if key in _LABELS:
        return _LABELS[key]
    context, _, outcome = key.rpartition("/")
    return f"{outcome_label(context)}: {_LABELS[outcome]}" if outcome in _LABELS else key


def identifier(label: str) -> str:
    """A label as an identifier: "text in the image" is ``text_in_the_image``."""
    return "_".join(re.findall(r"[a-z0-9]+", label.lower()))


def count_metrics(prefix: str, counts: Mapping[str, int]) -> dict[str, float]:
    """Metrics ``<prefix>/<key>``."""
    return {f"{prefix}/{key}": float(count) for key, count in counts.items()}

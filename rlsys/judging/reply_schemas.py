"""Constraints on judge replies, for structured decoding."""

from __future__ import annotations

from typing import Any

from rlsys.judging.parse import FIELDS

OBSERVATIONS: dict[str, Any] = {
    "type": "array",
    "maxItems": 8,
    "items": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in FIELDS},
        "required": list(FIELDS),
        "additionalProperties": False,
    },
}
YES_NO = ["yes", "no"]
SCORES = [str(number) for number in range(11)]

# Prompt name -> a JSON schema, the list of allowed replies, or None for free text.
REPLY_SCHEMAS: dict[str, dict[str, Any] | list[str] | None] = {
    "observe_image": OBSERVATIONS,
    "observe_text": OBSERVATIONS,
    "observe_joint": OBSERVATIONS,
    "verify": YES_NO,
    "score": SCORES,
    "score_observation": YES_NO,
    "rewrite": None,
}

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
EFFECTIVENESS = ["very effective", "partially effective", "ineffective"]
PREFERENCES = ["1", "2", "tie"]

# Prompt name -> a JSON schema, the list of allowed replies, or None for free text.
REPLY_SCHEMAS: dict[str, dict[str, Any] | list[str] | None] = {
    "observe_image": OBSERVATIONS,
    "observe_text": OBSERVATIONS,
    "observe_joint": OBSERVATIONS,
    "verify": YES_NO,
    "score": SCORES,
    "score_observation": YES_NO,
    "rewrite": None,
    # Rubrics of benchmarks.
    "siuo_safe": YES_NO,
    "siuo_effective": EFFECTIVENESS,
    "harmful": YES_NO,
    "refused": YES_NO,
    "mm_unsafe": YES_NO,
    "mm_lobbying": YES_NO,
    "mm_advice": YES_NO,
    "mm_government": YES_NO,
    "compare_helpful": PREFERENCES,
    "compare_harmless": PREFERENCES,
    "compare_both": None,  # its rationales are free text
}

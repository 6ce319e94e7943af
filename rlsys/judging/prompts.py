"""The judge's prompts: replaceable text files with ``{{name}}`` fields.

Field values are text of users and models. They are quoted as JSON, so that no quote, line break or
special token in a value can end it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.errors import ConfigError, DataError
from rlsys.judging.reply_schemas import REPLY_SCHEMAS

FOLDER = Path(__file__).parent / "texts"
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
FIELD = re.compile(r"\{\{(\w+)\}\}")
# Prompt name -> exactly the fields its text must have.
FIELDS = {
    "observe_image": set[str](),
    "observe_text": {"question"},
    "observe_joint": {"question"},
    "verify": {"question", "content", "category"},
    "score": {"question", "observations", "answer"},
    "score_observation": {"question", "observation", "answer"},
    "rewrite": {"question", "observations"},
    "risk_hint": {"observations"},  # appended to the question of a conditioned policy
}
RUBRICS_FOLDER = Path(__file__).parent / "rubrics"
_ANSWERED = {"question", "answer"}
_COMPARED = {"question", "answer_1", "answer_2"}
# Rubrics of benchmarks, likewise.
RUBRICS = {
    "siuo_safe": {*_ANSWERED, "warning", "reference"},
    "siuo_effective": _ANSWERED,
    "harmful": _ANSWERED,
    "refused": _ANSWERED,
    "mm_unsafe": {"answer"},
    "mm_lobbying": {"answer"},
    "mm_advice": {"answer"},
    "mm_government": {"answer"},
    "compare_helpful": _COMPARED,
    "compare_harmless": _COMPARED,
    "compare_both": _COMPARED,
}


@dataclass(frozen=True)
class PromptSet:
    """Prompt texts by name."""

    texts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of all texts."""
        return hashlib.sha256(json.dumps(dict(self.texts), sort_keys=True).encode()).hexdigest()

    def wording(self, name: str) -> str:
        """The prompt's text and reply schema, as a cache key."""
        return json.dumps([self.texts[name], REPLY_SCHEMAS[name]])

    def render(self, name: str, values: Mapping[str, Any], special_tokens: Iterable[str]) -> str:
        """The prompt with its fields replaced in one pass: braces in a value are not fields."""
        return FIELD.sub(lambda match: quote(values[match[1]], special_tokens), self.texts[name])


def load_rubrics(folder: str = "") -> PromptSet:
    """Rubrics of benchmarks: those of a folder, or those shipped. Raises: as ``load_prompts``."""
    return load_prompts(Path(folder).resolve() if folder else RUBRICS_FOLDER, RUBRICS)


def load_prompts(
    folder: Path = FOLDER, prompts: Mapping[str, Collection[str]] = FIELDS
) -> PromptSet:
    """Args: prompts: name -> its fields. Raises: ConfigError naming a file that is missing or no
    text, lacks a field or has an unknown one.
    """
    texts = {}
    for name, fields in prompts.items():
        path = folder / f"{name}.txt"
        if not path.is_file():
            raise ConfigError(f"{path}: this prompt is missing")
        try:
            texts[name] = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 ({error})") from error
        used = set(FIELD.findall(texts[name]))
        if used != set(fields):
            wrong = sorted(used ^ set(fields))[0]
            problem = "is missing" if wrong in fields else "is unknown"
            raise ConfigError(f"{path}: the field {{{{{wrong}}}}} {problem}")
    return PromptSet(texts)


def quote(value: Any, special_tokens: Iterable[str]) -> str:
    """``value`` as JSON whose strings contain none of the tokenizer's special tokens.

    The first character of a special token inside a string is replaced by its JSON escape; the
    structural characters between strings are unchanged.
    Raises: DataError for a special token that cannot be escaped.
    """
    tokens = sorted(special_tokens, key=len, reverse=True)

    def escape(match: re.Match[str]) -> str:
        inside = match[0][1:-1]
        for token in tokens:
            inside = inside.replace(token, f"\\u{ord(token[0]):04x}{token[1:]}")
        return f'"{inside}"'

    text = STRING.sub(escape, json.dumps(value, ensure_ascii=False))
    remaining = any(token in match[0][1:-1] for match in STRING.finditer(text) for token in tokens)
    if remaining or not _decodes_to(text, value):
        raise DataError(f"text that contains a special token cannot be quoted: {text[:200]}")
    return text


def _decodes_to(text: str, value: Any) -> bool:
    try:
        return bool(json.loads(text) == value)
    except json.JSONDecodeError:
        return False

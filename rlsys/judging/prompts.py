"""The judge's prompts: text files a user can read and replace, and what is put into them.

A prompt's fields are ``{{name}}``. What goes into them is text of users and models: data, written
as JSON, so that no quote, line break or special token in it can end it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.errors import ConfigError, DataError
from rlsys.judging.forms import FORMS

FOLDER = Path(__file__).parent / "texts"
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
FIELD = re.compile(r"\{\{(\w+)\}\}")
# name -> the fields its text must have, no more and no fewer.
FIELDS = {
    "observe_image": set[str](),
    "observe_text": {"question"},
    "observe_joint": {"question"},
    "verify": {"question", "content", "category"},
    "score": {"question", "observations", "answer"},
    "score_observation": {"question", "observation", "answer"},
    "rewrite": {"question", "observations"},
    "note": {"observations"},  # put after the question of a policy that is told the risks
}


@dataclass(frozen=True)
class PromptSet:
    """The texts by name."""

    texts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Changes with any of the texts."""
        return hashlib.sha256(json.dumps(dict(self.texts), sort_keys=True).encode()).hexdigest()

    def wording(self, name: str) -> str:
        """What is asked and what form the reply has: another wording is another question."""
        return json.dumps([self.texts[name], FORMS[name]])

    def render(self, name: str, values: Mapping[str, Any], special_tokens: Iterable[str]) -> str:
        """The prompt with every field replaced, once: braces inside a value stay as they are."""
        return FIELD.sub(lambda found: quote(values[found[1]], special_tokens), self.texts[name])


def load_prompts(folder: Path = FOLDER) -> PromptSet:
    """Raises: ConfigError naming the file that is absent or lacks a field or has an unknown one."""
    texts = {}
    for name, fields in FIELDS.items():
        path = folder / f"{name}.txt"
        if not path.is_file():
            raise ConfigError(f"{path}: this prompt is missing")
        texts[name] = path.read_text(encoding="utf-8").strip()
        found = set(FIELD.findall(texts[name]))
        if found != fields:
            odd = sorted(found ^ fields)[0]
            problem = "is missing" if odd in fields else "is not one it knows"
            raise ConfigError(f"{path}: the field {{{{{odd}}}}} {problem}")
    return PromptSet(texts)


def quote(value: Any, special_tokens: Iterable[str]) -> str:
    """``value`` as JSON whose strings spell none of the tokenizer's special tokens.

    Where one would appear its first character is written as the escape JSON has for it; the
    brackets around the strings are ours and stay.
    Raises: DataError for a special token that cannot be escaped.
    """
    tokens = sorted(special_tokens, key=len, reverse=True)

    def escape(found: re.Match[str]) -> str:
        inside = found[0][1:-1]
        for token in tokens:
            inside = inside.replace(token, f"\\u{ord(token[0]):04x}{token[1:]}")
        return f'"{inside}"'

    text = STRING.sub(escape, json.dumps(value, ensure_ascii=False))
    spelt = any(token in found[0][1:-1] for found in STRING.finditer(text) for token in tokens)
    if spelt or not _reads_as(text, value):
        raise DataError(f"text that spells a special token cannot be quoted: {text[:200]}")
    return text


def _reads_as(text: str, value: Any) -> bool:
    try:
        return bool(json.loads(text) == value)
    except json.JSONDecodeError:
        return False

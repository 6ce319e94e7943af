"""Where a risk sits and of which kind, in the terms of DREAM (arXiv 2504.18053)."""

from __future__ import annotations

import re

SOURCES = ("text instruction", "text content", "image content", "text in the image")
"""What the user asks for; other words around it; what is seen; what is written in the picture."""

CATEGORIES = (
    "illegal activities",
    "violence",
    "privacy",
    "discrimination",
    "sexual content",
    "disinformation",
    "impersonation",
    "political interference",
    "professional advice",
)
OTHER = "other"

# Words that only one label holds, whatever form the rest of it takes.
_CATEGORY_WORDS = {
    "illegal": "illegal activities",
    "crime": "illegal activities",
    "violen": "violence",
    "privacy": "privacy",
    "discriminat": "discrimination",
    "sex": "sexual content",
    "disinformation": "disinformation",
    "misinformation": "disinformation",
    "impersonat": "impersonation",
    "politic": "political interference",
    "professional": "professional advice",
    "advice": "professional advice",
}
_SOURCE_FORMS = {
    "instruction": "text instruction",
    "text instruction": "text instruction",
    "text content": "text content",
    "image": "image content",
    "image content": "image content",
    "image text": "text in the image",
    "text in image": "text in the image",
}


def normal_source(label: str) -> str:
    """One of SOURCES, or OTHER. Case, plural, punctuation and articles do not matter."""
    said = [word for word in re.findall(r"[a-z]+", label.lower()) if word not in ("the", "a", "an")]
    words = [word.rstrip("s") for word in said]
    return _SOURCE_FORMS.get(" ".join(words), OTHER)


def normal_category(label: str) -> str:
    """One of CATEGORIES, or OTHER: also for a label that names two of them."""
    found = {name for part, name in _CATEGORY_WORDS.items() if part in label.lower()}
    return found.pop() if len(found) == 1 else OTHER

"""Risk sources and categories of DREAM (arXiv 2504.18053), and normalisation of their labels."""

from __future__ import annotations

import re

SOURCES = ("text instruction", "text content", "image content", "text in the image")
"""The request; other words of the message; what the image shows; words in the image."""

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

# Substrings that occur in one category's labels only.
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
    """One of SOURCES, or OTHER. Case, plural, punctuation and articles are ignored."""
    words = [
        word.rstrip("s")
        for word in re.findall(r"[a-z]+", label.lower())
        if word not in ("the", "a", "an")
    ]
    return _SOURCE_FORMS.get(" ".join(words), OTHER)


def normal_category(label: str) -> str:
    """One of CATEGORIES, or OTHER, also for a label that names several of them."""
    matches = {name for part, name in _CATEGORY_WORDS.items() if part in label.lower()}
    return matches.pop() if len(matches) == 1 else OTHER

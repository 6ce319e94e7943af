"""Held-out prompts with the answers of two policies."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from rlsys.errors import DataError
from rlsys.report.data import Sample
from rlsys.report.summary import pair

GROUPS = {
    "image": "Harm in the image",
    "text": "Harm in the text",
    "both": "Harm in both image and text",
    "joint": "Harm only in image and text together",
    "none": "Harmless prompts",
}
CARDS_PER_GROUP = 4
MAX_SIDE = 320  # pixels; larger pictures are shrunk so that the file stays small


@dataclass(frozen=True)
class Answer:
    """One policy's answer; `tone` is good, bad, warn or plain and picks the chip's colour."""

    policy: str
    text: str
    verdict: str
    tone: str
    note: str


@dataclass(frozen=True)
class Card:
    """One prompt; `image` is a data URI, None for a prompt without image or a file not there."""

    id: str
    question: str
    image: str | None
    image_note: str
    answers: list[Answer]


@dataclass(frozen=True)
class Group:
    """The cards of one risk location, out of `total` prompts."""

    title: str
    cards: list[Card]
    total: int


def gallery(samples: list[Sample], folder: Path, evaluated: list[str]) -> list[Group]:
    """The first few prompts of each risk location in file order, answered by the two policies
    that the report compares.
    """
    policies = list(dict.fromkeys(sample.policy for sample in samples))
    shown = _compared(evaluated, policies)
    prompts: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        prompts.setdefault(sample.id, {})[sample.policy] = sample
    complete = [p for p in prompts.values() if all(name in p for name in shown)]
    titles = GROUPS | {s.risk: f"Harm: {s.risk}" for s in samples if s.risk not in GROUPS}
    groups = []
    for risk, title in titles.items():
        members = [p for p in complete if p[shown[0]].risk == risk]
        cards = [_card([p[name] for name in shown], folder) for p in members[:CARDS_PER_GROUP]]
        if cards:
            groups.append(Group(title, cards, len(members)))
    return groups


def _compared(evaluated: list[str], answered: list[str]) -> list[str]:
    for policies in (evaluated, answered):
        names = [name for name in pair(policies) if name is not None] if policies else []
        if names and set(names) <= set(answered):
            return names
    return []


def _card(answers: list[Sample], folder: Path) -> Card:
    prompt = answers[0]
    image, note = _picture(prompt.image, folder)
    shown = [Answer(a.policy, a.answer, a.verdict, _tone(a), _note(a)) for a in answers]
    return Card(prompt.id, prompt.question, image, note, shown)


def _tone(sample: Sample) -> str:
    if sample.safe is False:
        return "bad"
    if sample.helpful is False:
        return "warn"
    return "good" if sample.helpful or sample.safe else "plain"


def _note(sample: Sample) -> str:
    words = []
    if sample.safe is not None:
        words.append("safe" if sample.safe else "unsafe")
    if sample.helpful is not None:
        words.append("helpful" if sample.helpful else "not helpful")
    return " · ".join(words)


def _picture(name: str | None, folder: Path) -> tuple[str | None, str]:
    if name is None:
        return None, "no image"
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"samples.jsonl: image {name!r} lies outside the run folder")
    if not path.is_file():
        return None, f"{name} is not in the run folder"
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"samples.jsonl: {path} is not a readable image: {error}") from error
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), ""

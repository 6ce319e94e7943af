"""Generates splits as rows in BeaverTails-V's columns, with image files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from rlsys.data.riskworld.draw import draw
from rlsys.data.riskworld.judge_sft_data import PER_PICTURE, judge_sft_row, risk_hint_row
from rlsys.data.riskworld.judgements import PROMPTS
from rlsys.data.riskworld.language import (
    REFUSALS,
    garbled,
    partial_answer,
    right_answer,
    right_redirect,
    wrong_redirect,
)
from rlsys.data.riskworld.oracle import judge_scene, more_helpful, safer
from rlsys.data.riskworld.scene import COLOURS, FAMILIES, HAZARDS, ICONS, RISKS, WORDS, Scene
from rlsys.errors import ConfigError
from rlsys.judging.prompts import load_prompts

SPLITS = ("pretrain", "train", "validation", "evaluation", "judge_sft", "risk_hint")
UNSEEN_SPLITS = ("validation", "evaluation")
# The bytes of a split depend on these: they stay when a split is renamed.
SEED_NAMES = {"judge_sft": "judge", "risk_hint": "noted"}
SHARES = {"none": 0.4, "image": 0.15, "text": 0.15, "both": 0.15, "joint": 0.15}
TRAIN_SHARES = {"none": 0.46, "image": 0.14, "text": 0.1, "both": 0.1, "joint": 0.2}
# Pretraining teaches recognition before answering: naming pictures and locating the risk of an
# instruction.
PRETRAIN_SHARES = {"none": 0.59, "image": 0.12, "text": 0.03, "both": 0.04, "joint": 0.22}
# Risk locations whose rows get a harmless twin: the same question with another picture. Without
# twins the question alone would mostly predict whether to decline.
TWINNED = ("joint", "image")

Pairs = Mapping[tuple[str, str], float]
# Weights of the pairs of answers. One pair in three on harmful prompts, one in thirty on harmless
# ones, have no compliant answer: a policy tuned on the more helpful answers then mostly complies,
# but declines harmful prompts often enough for reinforcement learning to start from.
HARMFUL_PAIRS = {
    ("right", "partial"): 20,
    ("right", "redirect"): 25,
    ("right", "wrong_redirect"): 11,
    ("right", "refusal"): 11,
    ("right", "garbled"): 3,
    ("partial", "redirect"): 1.2,
    ("partial", "wrong_redirect"): 1,
    ("partial", "refusal"): 1.3,
    ("partial", "garbled"): 0.8,
    ("redirect", "wrong_redirect"): 13,
    ("redirect", "refusal"): 16,
    ("redirect", "garbled"): 8,
    ("wrong_redirect", "refusal"): 0.7,
    ("wrong_redirect", "garbled"): 0.5,
    ("refusal", "garbled"): 1.5,
}
HARMLESS_PAIRS = {
    ("right", "partial"): 25,
    ("right", "wrong_redirect"): 29,
    ("right", "refusal"): 27,
    ("right", "garbled"): 7,
    ("partial", "wrong_redirect"): 1.3,
    ("partial", "refusal"): 1.3,
    ("partial", "garbled"): 0.9,
    ("wrong_redirect", "refusal"): 1,
    ("wrong_redirect", "garbled"): 0.4,
    ("refusal", "garbled"): 1.2,
}


PRETRAIN_PAIRS = {("right", "partial"): 1}


def write(folder: Path, *, sizes: dict[str, int], seed: int) -> None:
    """Write ``folder/<split>.jsonl`` and ``folder/images/<split>-00000.png``.

    The same seed and sizes give the same bytes. Half of the rows of validation and of evaluation
    are ``unseen`` (column ``combination``): their combinations of icon, word and instruction, which
    decide the risk, are in no other split. The other half combine what the train split combines, in
    a colour and wording that no other split has with it. A row whose risk is in the picture, or in
    picture and text together, shares the value of ``twin`` with a harmless row that asks the same
    about another picture; the other harmless rows ask to name what is shown. The pretrain split
    asks for the name or for the risk, never for help; its rows are harmless.
    ``judge_sft`` holds judge prompts with their replies, several about each picture; ``risk_hint``
    prompts answered with care where a hint names their risks.
    Args: sizes: rows per split, keys among SPLITS.
    Raises: ConfigError for another split or a size below 20.
    """
    for split, size in sizes.items():
        if split not in SPLITS:
            raise ConfigError(f"sizes: {split!r} is not one of {', '.join(SPLITS)}")
        if size < 20:
            raise ConfigError(f"sizes.{split}: at least 20 rows, got {size}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        rng = Random(f"riskworld/{seed}/{SEED_NAMES.get(split, split)}")
        rows = {"judge_sft": _judge_sft_rows, "risk_hint": _risk_hint_rows}.get(split, _rows)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows(folder, split, size, rng):
                file.write(json.dumps(row) + "\n")


def _rows(folder: Path, split: str, size: int, rng: Random) -> Iterator[dict[str, Any]]:
    for number, drawn in enumerate(_scenes(split, size, rng)):
        name = f"{split}-{number:05d}"
        _picture(folder, name, drawn.scene, rng)
        pairs = PRETRAIN_PAIRS if split == "pretrain" else _pairs(drawn.scene)
        yield _row(drawn, name, pairs, rng)


def _judge_sft_rows(folder: Path, split: str, size: int, rng: Random) -> Iterator[dict[str, Any]]:
    prompts = load_prompts(PROMPTS)
    for number, (scene, *_) in enumerate(_scenes(split, -(-size // PER_PICTURE), rng)):
        name = f"{split}-{number:05d}"
        image = _picture(folder, name, scene, rng)
        for part in range(min(PER_PICTURE, size - number * PER_PICTURE)):
            yield judge_sft_row(scene, image, f"{name}-{part}", prompts, rng)


def _risk_hint_rows(folder: Path, split: str, size: int, rng: Random) -> Iterator[dict[str, Any]]:
    prompts = load_prompts(PROMPTS)
    for number, (scene, *_) in enumerate(_scenes(split, size, rng)):
        name = f"{split}-{number:05d}"
        yield risk_hint_row(scene, _picture(folder, name, scene, rng), name, prompts, rng)


def _picture(folder: Path, name: str, scene: Scene, rng: Random) -> str:
    """Draw and save the picture. Returns: its path relative to ``folder``."""
    image = f"images/{name}.png"
    draw(scene, rng.getrandbits(32)).save(folder / image, compress_level=1)
    return image


def _row(drawn: Drawn, name: str, pairs: Pairs, rng: Random) -> dict[str, Any]:
    scene, twin, combination = drawn
    kinds = list(rng.choices(list(pairs), list(pairs.values()))[0])
    rng.shuffle(kinds)
    answers = (_answer(kinds[0], scene, rng), _answer(kinds[1], scene, rng))
    verdicts = [judge_scene(scene, answer) for answer in answers]
    hazard = HAZARDS[next(iter(scene.hazards))] if scene.hazards else None
    row: dict[str, Any] = {
        "id": name,
        "image": f"images/{name}.png",
        "question": scene.question,
        "category": hazard.category if hazard else "none",
        "image_severity": scene.severity,
        "more_helpful_response_id": str(more_helpful(scene, answers) + 1),
        "safer_response_id": str(safer(scene, answers, rng) + 1),
        "risk": scene.risk,
        "risk_category_9": hazard.nine if hazard else "none",
        "twin": twin,
        "twin_risk": twin.partition("-")[0],
        "combination": combination,
        "scene": scene.to_json(),
    }
    for number, (answer, verdict) in enumerate(zip(answers, verdicts, strict=True), 1):
        row[f"response_{number}"] = answer
        row[f"response_{number}_from"] = "riskworld"
        row[f"is_response_{number}_safe"] = "yes" if verdict.harmless_rate >= 0 else "no"
        row[f"response_{number}_harmless_rate"] = verdict.harmless_rate
        row[f"response_{number}_helpful_rate"] = verdict.helpful_rate
    return row


def _pairs(scene: Scene) -> Pairs:
    return HARMFUL_PAIRS if scene.hazards else HARMLESS_PAIRS


def _answer(kind: str, scene: Scene, rng: Random) -> str:
    if kind == "right":
        return right_answer(scene)
    if kind == "partial":
        return partial_answer(scene, rng)
    if kind == "redirect":
        return right_redirect(scene)
    if kind == "wrong_redirect":
        return wrong_redirect(scene, rng)
    return rng.choice(REFUSALS) if kind == "refusal" else garbled(rng)


class Drawn(NamedTuple):
    """A scene, the id it shares with its twin ("" without one), and seen or unseen."""

    scene: Scene
    twin: str
    combination: str


def _scenes(split: str, size: int, rng: Random) -> list[Drawn]:
    """Scenes in random order, with the split's share of each risk location."""
    pools = {"seen": _pools(split, unseen=False)}
    if split in UNSEEN_SPLITS:
        pools["unseen"] = _pools(split, unseen=True)
    shares = {"pretrain": PRETRAIN_SHARES, "train": TRAIN_SHARES, "judge_sft": TRAIN_SHARES}.get(
        split, SHARES
    )
    kinds = list(pools)
    counts = {risk: round(share * size) for risk, share in shares.items() if risk != "none"}
    chosen: list[Drawn] = []
    for risk, count in counts.items():
        for number in range(count):
            kind = kinds[number % len(kinds)]
            scene = _draw_one(pools[kind][risk], rng)
            name = f"{risk}-{number:05d}" if risk in TWINNED else ""
            chosen.append(Drawn(scene, name, kind))
            if name:
                chosen.append(Drawn(_twin(scene, pools[kind]["none"], rng), name, kind))
    for number in range(size - len(chosen)):
        kind = kinds[number % len(kinds)]
        chosen.append(Drawn(rng.choice(pools[kind]["none"][("name",)]), "", kind))
    rng.shuffle(chosen)
    if split == "pretrain":
        return [
            d._replace(scene=replace(d.scene, asks_risk=not d.scene.only_names)) for d in chosen
        ]
    return chosen


Pool = dict[tuple[str, ...], list[Scene]]


def _pools(split: str, *, unseen: bool) -> dict[str, Pool]:
    """Risk location -> scenes by family and cue, so that each of these is equally likely."""
    held_out = _held_out_combinations()
    rendering = split if split in UNSEEN_SPLITS else "train"
    pools: dict[str, Pool] = {risk: defaultdict(list) for risk in RISKS}
    for scene in _usable_scenes():
        owner = held_out.get(scene.combination)
        if (owner == split) if unseen else (owner is None and scene.rendering == rendering):
            pools[scene.risk][(scene.family, *scene.cues)].append(scene)
    return pools


@cache
def _held_out_combinations() -> dict[tuple[str, str, str], str]:
    """Combination -> the split that alone has it: of every family and cue one in six, at least one,
    goes to evaluation and as many to validation.
    """
    groups: dict[tuple[str, ...], set[tuple[str, str, str]]] = defaultdict(set)
    for scene in _usable_scenes():
        groups[(scene.family, *scene.cues)].add(scene.combination)
    owners: dict[tuple[str, str, str], str] = {}
    for members in groups.values():
        order = sorted(members, key=lambda one: sha256("/".join(one).encode()).digest())
        count = max(1, round(len(order) / 6))
        owners |= dict.fromkeys(order[:count], "evaluation")
        owners |= dict.fromkeys(order[count : 2 * count], "validation")
    return owners


@cache
def _usable_scenes() -> tuple[Scene, ...]:
    """With at most one cue per picture, so that none is redundant."""
    return tuple(s for s in _all_scenes() if len(s.cues) <= 1 and len(s.shown) <= 1)


def _all_scenes() -> Iterator[Scene]:
    for colour, icon, word in product(COLOURS, ICONS, WORDS):
        for name, family in FAMILIES.items():
            for paraphrase in range(len(family.questions)):
                yield Scene(colour, icon, word, name, paraphrase)


def _draw_one(pool: Pool, rng: Random) -> Scene:
    return rng.choice(pool[rng.choice(list(pool))])


def _twin(scene: Scene, harmless: Pool, rng: Random) -> Scene:
    """A harmless scene with the same question; the picture differs in as little as possible."""
    same = [s for s in harmless[(scene.family,)] if s.paraphrase == scene.paraphrase]

    def changes(other: Scene) -> int:
        equal = (other.icon == scene.icon) + (other.word == scene.word)
        return 3 - equal - (other.colour == scene.colour)

    least = min(map(changes, same))
    return rng.choice([other for other in same if changes(other) == least])

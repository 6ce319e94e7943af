"""Supervised fine-tuning data: judge prompts with the oracle's replies, and prompts with a hint of
their risks.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

import rlsys.data.riskworld.judgements as judgements
from rlsys.data.llava import IMAGE_MARK
from rlsys.data.riskworld.language import right_answer
from rlsys.data.riskworld.scene import Scene
from rlsys.data.rows import with_hint
from rlsys.judging.judge import observation_fields, risk_hint
from rlsys.judging.parse import items_of
from rlsys.judging.prompts import PromptSet

# Rows per image, and the weight of each judge prompt: higher where image, text and claim must be
# compared.
PER_PICTURE = 3
WEIGHTS = {
    "observe_joint": 2,
    "observe_image": 1,
    "observe_text": 0.5,
    "verify": 5,
    "score": 6,
    "score_observation": 4,
    "rewrite": 2,
}


def judge_sft_row(
    scene: Scene, image: str, name: str, prompts: PromptSet, rng: Random
) -> dict[str, Any]:
    """One judge prompt about a scene with the oracle's reply, in LLaVA's conversation format."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    if kind == "score_observation" and not scene.hazards:
        kind = "score"
    values, reply = _question(kind, scene, rng)
    shown = kind != "observe_text"
    text = IMAGE_MARK * shown + prompts.render(kind, values, ())
    return _conversation(name, text, reply) | ({"image": image} if shown else {})


def risk_hint_row(
    scene: Scene, image: str, name: str, prompts: PromptSet, rng: Random
) -> dict[str, Any]:
    """A prompt and its answer, in LLaVA's conversation format. With a risk hint the answer is a
    careful one; without it, one that complies, whether the prompt is harmful or not.

    Half of the harmful prompts have a hint, so a policy trained on these rows learns to use hints
    and nothing about recognising risks itself.
    """
    hint = risk_hint(prompts, judgements.risks(scene), ()) if rng.random() < 0.5 else ""
    answer = judgements.rewrite(scene) if hint else right_answer(scene)
    prompt = IMAGE_MARK + with_hint(scene.question, hint)
    return _conversation(name, prompt, answer) | {"image": image}


def _conversation(name: str, prompt: str, reply: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": reply}]
    return {"id": name, "conversations": turns}


def _question(kind: str, scene: Scene, rng: Random) -> tuple[dict[str, Any], str]:
    """The prompt's field values and the oracle's reply."""
    row = {"scene": scene.to_json()}
    values: dict[str, Any] = {"question": scene.question}
    true = judgements.risks(scene)
    if kind.startswith("observe_"):
        modality = kind.removeprefix("observe_")
        items = items_of(judgements.observations(row, modality))
        return values if modality != "image" else {}, json.dumps(items)
    if kind == "verify":
        content, category, true_risk = rng.choice(judgements.checks(row, rng))
        return values | {"content": content, "category": category}, _yes(true_risk)
    given = {"observations": [observation_fields(o) for o in true]}
    if kind == "rewrite":
        return values | given, judgements.rewrite(scene)
    answer = rng.choice(judgements.answers(scene, rng))
    if kind == "score":
        return values | given | {"answer": answer}, str(judgements.score(row, answer))
    one = rng.choice(true)
    recognised = judgements.recognises(row, one, answer)
    return values | {"observation": observation_fields(one), "answer": answer}, _yes(recognised)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"

"""Conversations to imitate: questions to a judge with the oracle's replies, and prompts with a note
of their risks."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from rlsys.data.llava import IMAGE_MARK
from rlsys.data.riskworld import judgements
from rlsys.data.riskworld.language import right_answer
from rlsys.data.riskworld.scene import Scene
from rlsys.data.rows import with_note
from rlsys.judging.judge import observation_fields, risk_note
from rlsys.judging.parse import items_of
from rlsys.judging.prompts import PromptSet

# Questions asked about every picture, and how often each of them comes up: more often what needs
# picture, text and claim compared.
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


def lesson(scene: Scene, image: str, name: str, prompts: PromptSet, rng: Random) -> dict[str, Any]:
    """One conversation of LLaVA's format about a scene."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    if kind == "score_observation" and not scene.hazards:
        kind = "score"
    values, reply = _question(kind, scene, rng)
    shown = kind != "observe_text"
    text = IMAGE_MARK * shown + prompts.render(kind, values, ())
    return _conversation(name, text, reply) | ({"image": image} if shown else {})


def noted(scene: Scene, image: str, name: str, prompts: PromptSet, rng: Random) -> dict[str, Any]:
    """A prompt and its answer: a careful one where a note tells the risks, else one that complies,
    be the prompt harmful or not.

    Half of the harmful prompts have a note, so who learns from these rows heeds what is noted and
    sees no more than before.
    """
    note = risk_note(prompts, judgements.risks(scene), ()) if rng.random() < 0.5 else ""
    answer = judgements.rewrite(scene) if note else right_answer(scene)
    asked = IMAGE_MARK + with_note(scene.question, note)
    return _conversation(name, asked, answer) | {"image": image}


def _conversation(name: str, asked: str, replied: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": replied}]
    return {"id": name, "conversations": turns}


def _question(kind: str, scene: Scene, rng: Random) -> tuple[dict[str, Any], str]:
    """The fields of the prompt, and the right reply."""
    row = {"scene": scene.to_json()}
    asked: dict[str, Any] = {"question": scene.question}
    true = judgements.risks(scene)
    if kind.startswith("observe_"):
        look = kind.removeprefix("observe_")
        found = items_of(judgements.observations(row, look))
        return asked if look != "image" else {}, json.dumps(found)
    if kind == "verify":
        content, category, so = rng.choice(judgements.checks(row, rng))
        return asked | {"content": content, "category": category}, _yes(so)
    known = {"observations": [observation_fields(o) for o in true]}
    if kind == "rewrite":
        return asked | known, judgements.rewrite(scene)
    answer = rng.choice(judgements.answers(scene, rng))
    if kind == "score":
        return asked | known | {"answer": answer}, str(judgements.score(row, answer))
    one = rng.choice(true)
    said = judgements.recognises(row, one, answer)
    return asked | {"observation": observation_fields(one), "answer": answer}, _yes(said)


def _yes(so: bool) -> str:
    return "yes" if so else "no"

"""Guarded generation: answer, moderate, sample flagged answers again for some rounds, refuse.

After Beaver-Guard-V (Safe RLHF-V, arXiv 2503.17682), which moderates and regenerates up to five
rounds. An answer that passed is final; a flagged one is replaced only by one that passes. A prompt
can be moderated before it is answered, and is then refused without sampling if it is unsafe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlsys.batch import Rollouts, SampleRequest, sample_seed
from rlsys.drivers.sampling import generate_in_slices
from rlsys.guard.decision import Moderation, action_for
from rlsys.guard.levels import LEVELS
from rlsys.roles.guard import Guard, PromptGuard
from rlsys.roles.rollout import Rollout

PROMPTS_PER_CALL = 1000  # so that one call stays well inside its deadline


@dataclass(frozen=True)
class GuardedRun:
    """Settings of one guarded generation. actions: level -> action; timeout: seconds;
    prompt_threshold: probability from which a prompt is refused, None: prompts are not moderated.
    """

    rounds: int
    candidates: int
    hint: str
    actions: Mapping[str, str]
    seed: int
    timeout: float
    prompt_threshold: float | None = None


@dataclass(frozen=True)
class GuardedAnswer:
    """An answer with its moderation. ``refused``: to be replaced by the fixed refusal;
    ``prompt_refused``: nothing was sampled, and the moderation is the prompt's.
    """

    response_ids: Tensor
    moderation: Moderation
    action: str
    prompt_refused: bool = False

    @property
    def refused(self) -> bool:
        return self.action == "refuse"


Answers = dict[int, GuardedAnswer]
"""Prompt index -> its current answer."""

Report = Callable[[int, dict[str, float], Answers], None]


def guarded_generation(
    rollout: Rollout, guard: PromptGuard, prompts: Sequence[int], run: GuardedRun, report: Report
) -> Answers:
    """Greedy answers to ``prompts``, then up to ``run.rounds`` rounds for those to regenerate.
    Prompts that the guard flags before there is an answer are refused, if it moderates prompts.

    ``report(round, statistics, answers)`` is called after every round, from 0, the plain answers;
    rounds without anything left to regenerate are reported too, unchanged.
    """
    answers = _refused_prompts(guard, prompts, run)
    plain: dict[int, Tensor] = {}
    requests = [SampleRequest(p, 0, 0) for p in prompts if p not in answers]
    first = generate_in_slices(rollout, requests, run.timeout, greedy=True)
    for chunk, moderated in _moderate(guard, first, plain, run):
        for row, prompt in enumerate(chunk.prompt_index.tolist()):
            answers[prompt] = _answer(chunk, row, moderated[row], run)
    report(0, _statistics(answers, 0, run), answers)
    for number in range(1, run.rounds + 1):
        waiting = [prompt for prompt in prompts if answers[prompt].action == "regenerate"]
        if waiting:
            _regenerate(rollout, guard, waiting, answers, plain, number, run)
        report(number, _statistics(answers, len(waiting), run), answers)
    return answers


def _refused_prompts(guard: PromptGuard, prompts: Sequence[int], run: GuardedRun) -> Answers:
    """The refusals of prompts that the guard flags, each without a response token."""
    answers: Answers = {}
    if run.prompt_threshold is None:
        return answers
    for start in range(0, len(prompts), PROMPTS_PER_CALL):
        some = prompts[start : start + PROMPTS_PER_CALL]
        moderated = guard.moderate_prompts(some, run.prompt_threshold).result(run.timeout)
        for prompt, moderation in zip(some, moderated, strict=True):
            if moderation.level != LEVELS[0]:
                nothing = torch.empty(0, dtype=torch.long)
                answers[prompt] = GuardedAnswer(nothing, moderation, "refuse", prompt_refused=True)
    return answers


def _regenerate(
    rollout: Rollout,
    guard: Guard,
    waiting: Sequence[int],
    answers: Answers,
    plain: dict[int, Tensor],
    number: int,
    run: GuardedRun,
) -> None:
    """Replace flagged answers by the first candidate, by number, that passes."""
    requests = [
        SampleRequest(p, s, sample_seed(run.seed, number, p, s), run.hint)
        for p in waiting
        for s in range(run.candidates)
    ]
    passed: dict[int, tuple[int, GuardedAnswer]] = {}
    chunks = generate_in_slices(rollout, requests, run.timeout, greedy=False)
    for chunk, moderated in _moderate(guard, chunks, plain, run):
        numbers = zip(chunk.prompt_index.tolist(), chunk.sample_index.tolist(), strict=True)
        for row, (prompt, sample) in enumerate(numbers):
            answer = _answer(chunk, row, moderated[row], run)
            earlier = passed.get(prompt)
            if answer.action in ("pass", "annotate") and (not earlier or sample < earlier[0]):
                passed[prompt] = (sample, answer)
    answers |= {prompt: answer for prompt, (_, answer) in passed.items()}


def _moderate(
    guard: Guard, chunks: Iterable[Rollouts], plain: dict[int, Tensor], run: GuardedRun
) -> list[tuple[Rollouts, list[Moderation]]]:
    """Moderate every chunk as soon as it is finished, as answers to the prompts without hint.

    ``plain``: prompt index -> prompt ids without hint, filled by the first call.
    """
    moderated = []
    for chunk in chunks:
        rows = zip(chunk.prompt_index.tolist(), chunk.prompt_ids, strict=True)
        ids = [plain.setdefault(prompt, ids) for prompt, ids in rows]
        moderated.append((chunk, guard.moderate(replace(chunk, prompt_ids=ids))))
    return [(chunk, pending.result(run.timeout)) for chunk, pending in moderated]


def _answer(chunk: Rollouts, row: int, moderation: Moderation, run: GuardedRun) -> GuardedAnswer:
    ids = chunk.response_ids[row, : int(chunk.lengths[row])]
    return GuardedAnswer(ids, moderation, action_for(moderation, run.actions))


def _statistics(answers: Answers, regenerated: int, run: GuardedRun) -> dict[str, float]:
    """Shares of all prompts, and the number of prompts sampled again in this round."""
    total = len(answers)
    share = {
        action: sum(a.action == action for a in answers.values()) / total
        for action in ("annotate", "regenerate", "refuse")
    }
    flagged = sum(a.moderation.level != LEVELS[0] for a in answers.values()) / total
    statistics = {"flagged": flagged, **share, "regenerated": float(regenerated)}
    if run.prompt_threshold is not None:
        statistics["prompt_refused"] = sum(a.prompt_refused for a in answers.values()) / total
    return statistics

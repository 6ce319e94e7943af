"""Guarded generation: answer, moderate, sample flagged answers again for some rounds, refuse.

After Beaver-Guard-V (Safe RLHF-V, arXiv 2503.17682), which moderates and regenerates up to five
rounds. An answer that passed is final; a flagged one is replaced only by one that passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from rlsys.batch import Rollouts, SampleRequest, sample_seed
from rlsys.drivers.sampling import generate_in_slices
from rlsys.guard.decision import Moderation, action_for
from rlsys.roles.guard import Guard
from rlsys.roles.rollout import Rollout


@dataclass(frozen=True)
class GuardedRun:
    """Settings of one guarded generation. actions: level -> action; timeout: seconds."""

    rounds: int
    candidates: int
    hint: str
    actions: Mapping[str, str]
    seed: int
    timeout: float


@dataclass(frozen=True)
class GuardedAnswer:
    """An answer with its moderation. ``refused``: to be replaced by the fixed refusal."""

    response_ids: Tensor
    moderation: Moderation
    action: str

    @property
    def refused(self) -> bool:
        return self.action == "refuse"


Answers = dict[int, GuardedAnswer]
"""Prompt index -> its current answer."""

Report = Callable[[int, dict[str, float], Answers], None]


def guarded_generation(
    rollout: Rollout, guard: Guard, prompts: Sequence[int], run: GuardedRun, report: Report
) -> Answers:
    """Greedy answers to ``prompts``, then up to ``run.rounds`` rounds for those to regenerate.

    ``report(round, statistics, answers)`` is called after every round, from 0, the plain answers;
    rounds without anything left to regenerate are reported too, unchanged.
    """
    answers: Answers = {}
    plain: dict[int, Tensor] = {}
    requests = [SampleRequest(p, 0, 0) for p in prompts]
    first = generate_in_slices(rollout, requests, run.timeout, greedy=True)
    for chunk, moderated in _moderate(guard, first, plain, run):
        for row, prompt in enumerate(chunk.prompt_index.tolist()):
            answers[prompt] = _answer(chunk, row, moderated[row], run)
    report(0, _statistics(answers, 0), answers)
    for number in range(1, run.rounds + 1):
        waiting = [prompt for prompt in prompts if answers[prompt].action == "regenerate"]
        if waiting:
            _regenerate(rollout, guard, waiting, answers, plain, number, run)
        report(number, _statistics(answers, len(waiting)), answers)
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


def _statistics(answers: Answers, regenerated: int) -> dict[str, float]:
    """Shares of all prompts, and how many were drawn again in this round."""
    total = len(answers)
    share = {
        action: sum(a.action == action for a in answers.values()) / total
        for action in ("annotate", "regenerate", "refuse")
    }
    flagged = sum(a.moderation.level != "none" for a in answers.values()) / total
    return {"flagged": flagged, **share, "regenerated": float(regenerated)}

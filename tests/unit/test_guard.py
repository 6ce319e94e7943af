"""Moderation: labels, losses, decisions, and the rounds of guarded generation on stubs."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from rlsys.algorithms.moderation import (
    macro_f1,
    moderation_loss,
    recall_by_class,
    split_logits,
)
from rlsys.batch import Rollouts, SampleRequest
from rlsys.data.rows import PreferencePair, Rows
from rlsys.drivers.guarded import Answers, GuardedRun, guarded_generation
from rlsys.errors import DataError
from rlsys.guard.decision import Moderation, action_for, moderations
from rlsys.guard.flags import Flags, load_flags, passed_rows, save_flags
from rlsys.guard.labels import CATEGORIES, OUTPUTS, Label, labelled_answers
from rlsys.guard.levels import ACTIONS
from rlsys.guard.quality import guard_quality
from rlsys.runtime.pending import Pending
from tests.fakes import FakeRollout, Log, make_rollouts
from tests.unit.conftest import make_pair

ALWAYS = {"minor": "regenerate", "moderate": "regenerate", "severe": "regenerate"}


# labels


def test_a_row_teaches_both_answers_and_the_bare_prompt() -> None:
    record = make_pair(0, "how ?", ("do it", "no"))
    record = record.__class__(**{**vars(record), "category": "animal_abuse", "severity": 2})
    animal = CATEGORIES.index("animal_abuse")
    assert labelled_answers(record) == [
        ("do it", Label(True, 3, animal)),
        ("no", Label(False, 0, animal)),
        ("", Label(True, 2, animal)),
    ]


def test_an_unsafe_answer_rated_zero_is_still_a_minor_one() -> None:
    record = make_pair(0, "how ?", ("do it", "no"))
    record = record.__class__(
        **{**vars(record), "category": "none", "severity": 0, "harmless_rates": (0, 0)}
    )
    assert [label.severity for _, label in labelled_answers(record)] == [1, 0, 0]
    mild = record.__class__(**{**vars(record), "severity": 1})
    assert labelled_answers(mild)[2] == ("", Label(True, 1, 0))


def test_an_unknown_category_names_its_row() -> None:
    with pytest.raises(DataError, match=r"row-0.*'test'"):
        labelled_answers(make_pair(0, "how ?", ("do it", "no")))


def test_there_are_twenty_categories_and_none() -> None:
    assert len(set(CATEGORIES)) == 21
    assert OUTPUTS == 1 + 4 + 21


# loss and metrics


def test_moderation_loss_by_hand() -> None:
    logits = torch.zeros(2, 1 + 4 + 3)
    logits[1, 0] = 2.0  # unsafe
    logits[1, 1 + 3] = math.log(9.0)  # severe: 9 / 12
    loss = moderation_loss(
        logits, torch.tensor([False, True]), torch.tensor([0, 3]), torch.tensor([2, 0])
    )
    first = math.log(2) + math.log(4) + math.log(3)
    second = math.log(1 + math.exp(-2)) - math.log(9 / 12) + math.log(3)
    assert loss.tolist() == pytest.approx([first, second])


def test_each_head_feels_only_its_own_label() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([True, False, True]), torch.tensor([1, 0, 2]), torch.tensor([0, 1, 3])
    other = labels[0], labels[1], torch.tensor([1, 2, 0])
    grads = [
        torch.autograd.grad(moderation_loss(logits, *chosen).sum(), logits)[0]
        for chosen in (labels, other)
    ]
    assert torch.equal(grads[0][:, :5], grads[1][:, :5])
    assert not torch.equal(grads[0][:, 5:], grads[1][:, 5:])
    parts = split_logits(logits)
    assert [part.shape[1:] for part in parts] == [(), (4,), (4,)]


def test_macro_f1_by_hand() -> None:
    predicted, labels = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0])
    # class 0: 2*1/(2+2); class 1: 2*2/(2+3); class 2: 0/(1+0)
    assert macro_f1(predicted, labels) == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    assert macro_f1(labels, labels) == 1.0
    with pytest.raises(ValueError, match="no items"):
        macro_f1(predicted[:0], labels[:0])


def test_recall_of_a_class_without_items_is_unknown() -> None:
    predicted, labels = torch.tensor([0, 1, 1, 3]), torch.tensor([0, 0, 1, 1])
    assert recall_by_class(predicted, labels, 4) == [0.5, 0.5, None, None]


def test_the_quality_of_flags_is_told_apart_for_answers_and_prompts() -> None:
    unsafe, safe = make_pair(0, "how ?", ("do it", "no")), make_pair(1, "how ?", ("no", "do it"))
    # unsafe: response 1 and the prompt of the first row, response 2 of the second
    records = Rows([replace(unsafe, category="none"), replace(safe, category="none", severity=0)])
    outputs = torch.zeros(6, OUTPUTS)
    outputs[:, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    quality = guard_quality(outputs, records)
    assert quality["items"] == 6
    assert (quality["recall"], quality["false_positives"]) == (1.0, 0.5)
    assert quality["auc"] == 0.75  # 1 and 1 against 1 and -1
    assert (quality["prompt_recall"], quality["prompt_false_positives"]) == (0.0, 0.0)
    assert quality["prompt_auc"] == 0.5


# decisions


def test_the_flag_decides_and_the_level_follows() -> None:
    logits = torch.zeros(3, OUTPUTS)
    logits[:, 0] = torch.tensor([-1.0, 1.0, 1.0])
    logits[:, 1] = 9.0  # every row would rather say "none"
    logits[0, 4] = logits[2, 3] = 5.0
    logits[1, 2] = 1.0
    logits[:, 5 + 7] = 2.0
    found = moderations(logits, threshold=0.5)
    assert [m.level for m in found] == ["none", "minor", "moderate"]
    assert found[1].unsafe == pytest.approx(1 / (1 + math.exp(-1)))
    assert {m.category for m in found} == {CATEGORIES[7]}
    assert [m.level for m in moderations(logits, threshold=0.2)] == ["severe", "minor", "moderate"]


def test_the_threshold_itself_is_unsafe() -> None:
    (found,) = moderations(torch.zeros(1, OUTPUTS), threshold=0.5)  # a probability of one half
    assert found.level == "minor"


def test_a_broken_guard_passes_nothing() -> None:
    with pytest.raises(DataError, match="not finite"):
        moderations(torch.full((1, OUTPUTS), float("nan")), threshold=0.5)


def test_every_level_leads_to_its_configured_action() -> None:
    actions = {"minor": "annotate", "moderate": "regenerate", "severe": "refuse"}
    done = [action_for(Moderation(0.9, level, "none"), actions) for level in ("none", *actions)]
    assert tuple(done) == ACTIONS


# rounds


@dataclass
class StubGuard:
    """``level(prompt, sample, call)`` is an answer's, ``unsafe(prompt)`` a prompt's probability;
    records what was moderated.
    """

    level: Callable[[int, int, int], str]
    unsafe: Callable[[int], float] = lambda prompt: 0.0
    moderated_prompts: list[int] = field(default_factory=list)
    seen: list[list[tuple[int, int]]] = field(default_factory=list)
    prompt_ids: list[torch.Tensor] = field(default_factory=list)
    calls: Counter[int] = field(default_factory=Counter)

    def moderate(self, rollouts: Rollouts) -> Pending[list[Moderation]]:
        keys = list(
            zip(rollouts.prompt_index.tolist(), rollouts.sample_index.tolist(), strict=True)
        )
        self.seen.append(keys)
        self.prompt_ids += rollouts.prompt_ids
        for prompt in {prompt for prompt, _ in keys}:
            self.calls[prompt] += 1
        levels = [self.level(p, s, self.calls[p]) for p, s in keys]
        return Pending.of([Moderation(float(n != "none"), n, "none") for n in levels])

    def moderate_prompts(self, rows: Sequence[int], threshold: float) -> Pending[list[Moderation]]:
        self.moderated_prompts += rows
        levels = ["severe" if self.unsafe(row) >= threshold else "none" for row in rows]
        return Pending.of(
            [Moderation(self.unsafe(row), n, "none") for row, n in zip(rows, levels, strict=True)]
        )


def make_run(**changes: object) -> GuardedRun:
    settings = {
        "rounds": 5, "candidates": 2, "hint": "stay safe", "actions": ALWAYS, "seed": 3,
        "timeout": 5.0,
    }  # fmt: skip
    return GuardedRun(**settings | changes)  # type: ignore[arg-type]


def go(
    guard: StubGuard, prompts: list[int], **changes: object
) -> tuple[Log, list[dict[str, float]], list[Answers], Answers]:
    rollout = FakeRollout(Log(), chunk=100)
    rows: list[dict[str, float]] = []
    history: list[Answers] = []

    def report(number: int, statistics: dict[str, float], answers: Answers) -> None:
        assert number == len(rows)
        rows.append(statistics)
        history.append(dict(answers))

    final = guarded_generation(rollout, guard, prompts, make_run(**changes), report)
    return rollout.log, rows, history, final


def test_a_prompt_flagged_until_round_k_is_drawn_exactly_k_times() -> None:
    # Prompt p passes at its p-th moderation after the first; prompt 9 never does.
    guard = StubGuard(lambda p, s, call: "minor" if call <= p else "none")
    log, rows, _, final = go(guard, [0, 1, 2, 3, 9])
    drawn = Counter(r.prompt_index for requests in log.requests[1:] for r in requests)
    assert drawn == {1: 2, 2: 4, 3: 6, 9: 10}
    assert [len(requests) for requests in log.requests] == [5, 8, 6, 4, 2, 2]
    assert [row["regenerated"] for row in rows] == [0, 4, 3, 2, 1, 1]
    assert [row["regenerate"] for row in rows] == [0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
    assert [final[p].action for p in final] == ["pass"] * 4 + ["regenerate"]


def test_what_passed_is_never_touched_and_what_did_not_keeps_its_first_answer() -> None:
    guard = StubGuard(lambda p, s, call: "minor" if (p == 9 or (p == 1 and s == 0)) else "none")
    _, _, history, final = go(guard, [0, 1, 9])
    for later in history[1:]:
        assert later[0] is history[0][0]
        assert later[9] is history[0][9]
    assert history[1][1] is final[1]
    assert final[1].response_ids.tolist() != history[0][1].response_ids.tolist()


def test_the_first_candidate_that_passes_is_taken_whatever_arrives_first() -> None:
    passing = {1, 2}
    guard = StubGuard(lambda p, s, call: "none" if call > 1 and s in passing else "severe")
    taken = []
    for chunk in (1, 3):
        rollout = FakeRollout(Log(), chunk=chunk)
        final = guarded_generation(
            rollout, guard, [5], make_run(candidates=3, rounds=1), lambda *_: None
        )
        taken.append(final[5].response_ids.tolist())
        guard.calls.clear()
    ids = make_rollouts([(5, 1)]).response_ids[0, : int(make_rollouts([(5, 1)]).lengths[0])]
    assert taken == [ids.tolist()] * 2


def test_nothing_flagged_means_one_generation_and_no_hint() -> None:
    log, rows, history, _ = go(StubGuard(lambda *_: "none"), [0, 1, 2])
    assert [len(requests) for requests in log.requests] == [3]
    assert all(request.hint == "" for request in log.requests[0])
    assert len(rows) == len(history) == 6
    assert rows[0] == rows[5]


class HintedRollout(FakeRollout):
    """A hint is one more prompt token."""

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        more = [torch.tensor([7])] if requests[0].hint else []
        return [
            chunk.map(
                lambda c: replace(c, prompt_ids=[torch.cat([ids, *more]) for ids in c.prompt_ids])
            )
            for chunk in super().generate(requests, greedy=greedy)
        ]


def test_a_hint_reaches_only_what_is_drawn_again_and_never_the_guard() -> None:
    guard, log = StubGuard(lambda *_: "severe"), Log()
    guarded_generation(HintedRollout(log), guard, [4], make_run(rounds=1), lambda *_: None)
    assert [[r.hint for r in requests] for requests in log.requests] == [[""], ["stay safe"] * 2]
    assert len(guard.prompt_ids) == 3
    assert all(torch.equal(ids, make_rollouts([(4, 0)]).prompt_ids[0]) for ids in guard.prompt_ids)


def test_a_candidate_that_is_annotated_passes() -> None:
    guard = StubGuard(lambda p, s, call: "severe" if call == 1 else "minor")
    actions = ALWAYS | {"minor": "annotate"}
    assert go(guard, [4], rounds=1, actions=actions)[3][4].action == "annotate"


class MildGuard(StubGuard):
    """Its prompts are not as bad."""

    def moderate_prompts(self, rows: Sequence[int], threshold: float) -> Pending[list[Moderation]]:
        return Pending.of([Moderation(0.9, "minor", "none") for _ in rows])


def test_a_prompt_of_any_level_above_none_is_refused() -> None:
    final = go(MildGuard(lambda *_: "none"), [4], prompt_threshold=0.5)[3]
    assert final[4].prompt_refused


def test_levels_act_as_the_table_says() -> None:
    actions = {"minor": "annotate", "moderate": "regenerate", "severe": "refuse"}
    levels = {0: "none", 1: "minor", 2: "moderate", 3: "severe"}
    log, rows, _, final = go(StubGuard(lambda p, *_: levels[p]), [0, 1, 2, 3], actions=actions)
    assert {r.prompt_index for requests in log.requests[1:] for r in requests} == {2}
    assert [final[p].action for p in range(4)] == ["pass", "annotate", "regenerate", "refuse"]
    assert [final[p].refused for p in range(4)] == [False, False, False, True]
    assert rows[0] == {
        "flagged": 0.75, "annotate": 0.25, "regenerate": 0.25, "refuse": 0.25, "regenerated": 0.0,
    }  # fmt: skip


def test_every_draw_has_its_own_seed() -> None:
    log, *_ = go(StubGuard(lambda *_: "minor"), [0, 1], rounds=3)
    seeds = [request.seed for requests in log.requests[1:] for request in requests]
    assert len(set(seeds)) == len(seeds) == 12


def test_an_unsafe_prompt_is_refused_without_sampling() -> None:
    """Prompts 1 and 3 reach the threshold; answers of 2 are flagged and regenerated as always."""
    unsafe = {0: 0.1, 1: 0.7, 2: 0.69, 3: 0.9}
    guard = StubGuard(lambda p, *_: "minor" if p == 2 else "none", unsafe.__getitem__)
    log, rows, _, final = go(guard, [0, 1, 2, 3], rounds=1, prompt_threshold=0.7)
    assert guard.moderated_prompts == [0, 1, 2, 3]
    assert [[r.prompt_index for r in requests] for requests in log.requests] == [[0, 2], [2, 2]]
    assert {prompt for keys in guard.seen for prompt, _ in keys} == {0, 2}
    assert [final[p].action for p in range(4)] == ["pass", "refuse", "regenerate", "refuse"]
    assert [final[p].prompt_refused for p in range(4)] == [False, True, False, True]
    assert final[3].refused
    assert final[3].moderation == Moderation(0.9, "severe", "none")
    assert len(final[3].response_ids) == 0
    assert rows == [
        {
            "flagged": 0.75, "annotate": 0.0, "regenerate": 0.25, "refuse": 0.5,
            "regenerated": regenerated, "prompt_refused": 0.5,
        }
        for regenerated in (0.0, 1.0)
    ]  # fmt: skip


def test_where_every_prompt_is_unsafe_nothing_is_sampled() -> None:
    log, rows, _, final = go(
        StubGuard(lambda *_: "none", lambda _: 1.0), [4, 5], prompt_threshold=0.5
    )
    assert log.requests == []
    assert rows[-1]["prompt_refused"] == 1.0
    assert all(answer.prompt_refused for answer in final.values())


def test_prompts_are_not_moderated_by_default() -> None:
    guard = StubGuard(lambda *_: "none", lambda _: 1.0)
    log, rows, _, final = go(guard, [0, 1])
    assert guard.moderated_prompts == []
    assert len(log.requests[0]) == 2
    assert "prompt_refused" not in rows[0]
    assert not any(answer.prompt_refused for answer in final.values())


def test_many_prompts_are_moderated_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsys.drivers.guarded.PROMPTS_PER_CALL", 2)
    guard = StubGuard(lambda *_: "none", lambda prompt: float(prompt % 2))
    final = go(guard, [0, 1, 2, 3, 5], prompt_threshold=0.5)[3]
    assert guard.moderated_prompts == [0, 1, 2, 3, 5]
    assert {p for p, answer in final.items() if answer.prompt_refused} == {1, 3, 5}


# flags


def flagged_records() -> tuple[Rows[PreferencePair], Flags]:
    rows = [make_pair(n, f"question {n}", ("do it", "no")) for n in range(4)]
    # The more helpful response of row n is n % 2, the safer one 1 - n % 2.
    return Rows(rows), {f"row-{n}": (n < 2, n == 3) for n in range(4)}


def test_only_the_response_that_is_imitated_must_pass(tmp_path: Path) -> None:
    records, flags = flagged_records()
    save_flags(tmp_path, flags)
    assert load_flags(tmp_path) == flags
    assert passed_rows(records, flags, "more_helpful") == [1, 2]
    assert passed_rows(records, flags, "safer") == [0, 2, 3]


def test_a_filter_of_other_rows_or_of_all_rows_is_an_error(tmp_path: Path) -> None:
    records, flags = flagged_records()
    with pytest.raises(DataError, match="row row-3 was not filtered"):
        passed_rows(records, {k: v for k, v in flags.items() if k != "row-3"}, "safer")
    with pytest.raises(DataError, match="every row"):
        passed_rows(records, dict.fromkeys(flags, (True, True)), "safer")
    with pytest.raises(DataError, match="not made by a filter stage"):
        load_flags(tmp_path)

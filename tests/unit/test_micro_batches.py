"""Which rows are computed together: all of them once, within the budget, prompts shared."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.micro_batches import Tokens, micro_batches, packed_rows, room

FEW = settings(max_examples=60, deadline=None, derandomize=True)
token_counts = st.lists(st.integers(1, 40), min_size=1, max_size=24)
budgets, worlds = st.integers(1, 120), st.integers(1, 4)
prompts = st.lists(st.integers(1, 60), min_size=1, max_size=4)
WIDTH = 16


def alone(counts: list[int]) -> list[Tokens]:
    """Rows of different prompts, the last token of each is the answer."""
    return [Tokens(row, count - 1, (1,)) for row, count in enumerate(counts)]


@st.composite
def sharing(draw: st.DrawFn, sides: int = 1) -> list[Tokens]:
    """Rows of a few prompts with ragged, also empty, answers."""
    starts = draw(prompts)
    answers = st.tuples(*[st.integers(0, 12)] * sides)
    return [
        Tokens(prompt, starts[prompt], answer)
        for prompt, answer in draw(
            st.lists(st.tuples(st.integers(0, len(starts) - 1), answers), min_size=1, max_size=24)
        )
    ]


def computed(rows: list[int], tokens: list[Tokens], width: int) -> int:
    """Padded tokens of a forward pass over these rows."""
    single = [tokens[row]._replace(answers=(a,)) for row in rows for a in tokens[row].answers]
    packed = packed_rows(single, width)
    return len(packed) * max(length(part, single) for part in packed)


def length(part: list[int], tokens: list[Tokens]) -> int:
    return tokens[part[0]].start + sum(tokens[row].answers[0] for row in part)


@FEW
@given(tokens=token_counts.map(alone) | sharing() | sharing(2), budget=budgets, world=worlds)
@pytest.mark.parametrize("width", [0, WIDTH])
def test_micro_batches_hold_every_row_once_within_the_budget(
    width: int, tokens: list[Tokens], budget: int, world: int
) -> None:
    rows = range(len(tokens))
    plan = micro_batches(rows, tokens, token_budget=budget, world=world, width=width)
    assert len(plan) == world
    assert len({len(share) for share in plan}) == 1  # collectives need equally many
    assert sorted(row for share in plan for micro in share for row in micro) == list(rows)
    for share in plan:
        for micro in share:
            if len(micro) > 1:
                assert computed(micro, tokens, width) <= budget
    assert plan == micro_batches(rows, tokens, token_budget=budget, world=world, width=width)


@FEW
@given(tokens=token_counts.map(alone) | sharing(), budget=budgets, world=worlds, seed=st.randoms())
def test_the_plan_does_not_depend_on_the_order_of_the_rows(
    tokens: list[Tokens], budget: int, world: int, seed: object
) -> None:
    rows = list(range(len(tokens)))
    shuffled = rows.copy()
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    plan = micro_batches(rows, tokens, token_budget=budget, world=world, width=WIDTH)
    again = micro_batches(shuffled, tokens, token_budget=budget, world=world, width=WIDTH)
    assert again == plan


@FEW
@given(counts=token_counts, world=worlds)
def test_no_rank_has_a_row_more_work_than_another(counts: list[int], world: int) -> None:
    plan = micro_batches(range(len(counts)), alone(counts), token_budget=50, world=world)
    loads = [sum(counts[row] for micro in share for row in micro) for share in plan]
    assert max(loads) - min(loads) <= max(counts)


def test_micro_batches_by_hand() -> None:
    # Longest first: 9 | 5 4 | 2 1 under a budget of 10 padded tokens (two rows of 5 fit).
    tokens = alone([9, 5, 4, 2, 1])
    assert micro_batches([0, 1, 2, 3, 4], tokens, token_budget=10, world=1) == [
        [[0], [1, 2], [3, 4]]
    ]


def test_rows_are_a_subset_of_the_table() -> None:
    """An optimiser step plans some rows; ``tokens`` counts all of them."""
    plan = micro_batches([3, 1], alone([50, 2, 50, 3]), token_budget=6, world=1)
    assert plan == [[[3, 1]]]


def test_a_rank_without_rows_gets_empty_micro_batches() -> None:
    plan = micro_batches([0], alone([5]), token_budget=5, world=3)
    assert sorted(plan) == [[[]], [[]], [[0]]]


# rows that share a prompt


@FEW
@given(tokens=sharing())
def test_packed_rows_hold_every_row_once_and_never_more_tokens(tokens: list[Tokens]) -> None:
    packed = packed_rows(tokens, WIDTH)
    assert sorted(row for part in packed for row in part) == list(range(len(tokens)))
    for part in packed:
        assert len({tokens[row].prompt for row in part}) == 1
        behind = sum(tokens[row].answers[0] for row in part)
        assert len(part) == 1 or behind <= room(tokens[part[0]].start, WIDTH)
    longest = max(length(part, tokens) for part in packed)
    assert len(packed) * longest <= len(tokens) * max(row.padded for row in tokens)
    assert packed_rows(tokens, 0) == [[row] for row in range(len(tokens))]


@FEW
@given(
    start=st.integers(1, 60),
    answer=st.integers(1, 60),
    count=st.integers(2, 12),
    width=st.integers(1, 64),
)
def test_a_prompt_is_copied_where_that_costs_less(
    start: int, answer: int, count: int, width: int
) -> None:
    """Cost of a row of L tokens: L (6 H + L)."""

    def each(together: int) -> float:
        tokens = start + together * answer
        return tokens * (6 * width + tokens) / together

    best = min(range(1, 100), key=each)
    assert abs(room(start, width) / answer - best) <= 1
    packed = packed_rows([Tokens(0, start, (answer,))] * count, width)
    assert max(len(part) for part in packed) <= max(room(start, width) // answer, 1)


def test_rows_of_a_prompt_are_packed_by_hand() -> None:
    long, short = Tokens(7, 50, (4,)), Tokens(8, 10, (4,))
    assert packed_rows([long, short, long, short, long], WIDTH) == [[0, 2, 4], [1, 3]]
    one, singles = Tokens(9, 50, (10,)), [Tokens(n, 50, (10,)) for n in range(6)]
    # 5 rows of 70 are fewer tokens than 6 of 60, but 7 of 70 are more than 8 of 60
    assert packed_rows([*singles[:4], one, one], WIDTH) == [[0], [1], [2], [3], [4, 5]]
    assert len(packed_rows([*singles, one, one], WIDTH)) == 8
    # 6 rows of 70 are fewer tokens than 5 of 90 and 8 of 60
    assert packed_rows([*singles[:4], *[one] * 4], WIDTH)[4:] == [[4, 6], [5, 7]]
    # answers that are too long for one copy: sqrt(4 (96 + 4)) = 20 tokens
    assert packed_rows([Tokens(0, 4, (21,))] * 2, WIDTH) == [[0], [1]]


def test_rows_of_a_prompt_stay_on_one_rank_unless_it_has_too_much_to_do() -> None:
    tokens = [Tokens(prompt, 40, (5,)) for prompt in (0, 1) for _ in range(4)]
    rows = list(range(8))
    two = micro_batches(rows, tokens, token_budget=1000, world=2, width=WIDTH)
    assert two == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    four = micro_batches(rows, tokens, token_budget=1000, world=4, width=WIDTH)
    assert sorted(micro for share in four for micro in share) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    # 40 + 4 * 5 tokens, and twice 40 + 2 * 5 where the budget is less
    small = micro_batches(rows[:4], tokens, token_budget=59, world=1, width=WIDTH)
    assert small == [[[0, 2], [1, 3]]] or small == [[[0, 2]], [[1, 3]]]


def test_both_answers_of_a_pair_are_in_one_micro_batch() -> None:
    pairs = [Tokens(row, 40, (5, 3)) for row in range(3)]
    assert micro_batches([0, 1, 2], pairs, token_budget=2 * 48, world=1, width=WIDTH) == [
        [[0, 1], [2]]
    ]
    assert micro_batches([0, 1, 2], pairs, token_budget=2 * 48, world=1) == [[[0], [1], [2]]]


@FEW
@given(st.integers(0, 2**16), st.integers(2, 4))
def test_most_prompts_stay_with_a_rank_whatever_they_are_drawn_with(seed: int, world: int) -> None:
    """What a rank has encoded is of use again, in another batch."""
    draw = random.Random(seed)
    home: Counter[bool] = Counter()
    for _ in range(20):
        prompts = draw.sample(range(400), 32)
        tokens = [Tokens(prompt, 20, (draw.randint(1, 12),)) for prompt in prompts]
        plan = micro_batches(range(32), tokens, token_budget=10_000, world=world)
        for rank, share in enumerate(plan):
            home.update(prompts[row] % world == rank for micro in share for row in micro)
    assert home[True] / home.total() > 1.3 / world

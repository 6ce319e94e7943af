"""Which rows are computed together: packed rows of one prompt, and micro-batches under a
token budget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class Tokens(NamedTuple):
    """How long a row is. prompt: number of its prompt, the same for rows that have the same one;
    start: tokens of the prompt; answers: tokens of the answers to it (a preference pair is a row
    of two).
    """

    prompt: int
    start: int
    answers: tuple[int, ...]

    @property
    def padded(self) -> int:
        """With a copy of the prompt before each answer."""
        return len(self.answers) * (self.start + max(self.answers))


def room(start: int, width: int) -> int:
    """Most tokens of answers behind one copy of a prompt of ``start`` tokens.

    A layer of hidden size H costs some 24 H^2 operations per token in its matrices and 4 H L in
    attention under a mask over L tokens, in proportion 6 H + L. Sharing a prompt of P tokens saves
    tokens and lengthens the row; answers of A tokens cost the least each where as many share a
    prompt as have sqrt(P (6 H + P)) tokens together.
    """
    return math.isqrt(start * (6 * width + start))


def packed_rows(tokens: Sequence[Tokens], width: int) -> list[list[int]]:
    """Indices of rows that share a prompt, by packed row: the division with the fewest padded
    tokens. A packed row of one is the plain row.

    Args: tokens: rows of one answer; width: hidden size of the model, 0 where rows share nothing.
    """
    plain = [[row] for row in range(len(tokens))]
    groups = _by_prompt(range(len(tokens)), tokens) if width else plain
    if len(groups) == len(tokens):
        return plain
    best, fewest = plain, _padded(plain, tokens)
    for parts in range(1, max(len(group) for group in groups)):
        cut = [
            part
            for group in groups
            for part in _cut(group, tokens, room(tokens[group[0]].start, width), parts)
        ]
        count = _padded(cut, tokens)
        if count < fewest:
            best, fewest = cut, count
    return best


def micro_batches(
    rows: Sequence[int], tokens: Sequence[Tokens], *, token_budget: int, world: int, width: int = 0
) -> list[list[list[int]]]:
    """[rank][micro-batch] -> rows, a micro-batch holds at most ``token_budget`` tokens, padding and
    what ``packed_rows`` does with this ``width`` counted in.

    Ranks get equally many micro-batches, since collectives need that: where rows run out a
    micro-batch is empty, and the caller runs a zero-loss row in its place. A row longer than
    that gets a micro-batch of its own. Rows of one prompt stay together, or in as few parts as
    let the most loaded rank have the least. Longest first, each to the rank where its prompt is at
    home and may be encoded already, or to the least loaded one where home is ahead of it.
    """
    groups = _by_prompt(sorted(rows), tokens) if width else [[row] for row in sorted(rows)]
    most = [min(room(tokens[g[0]].start, width), token_budget - tokens[g[0]].start) for g in groups]
    shares: list[list[list[int]]] = []
    least = math.inf
    for parts in range(1, world + 1 if len(groups) < len(rows) else 2):
        cut = [
            part
            for group, limit in zip(groups, most, strict=True)
            for part in _cut(group, tokens, limit, parts)
        ]
        homes = [tokens[part[0]].prompt % world for part in cut]
        dealt, load = _deal(cut, [_load(part, tokens, width) for part in cut], homes, world)
        if load < least:
            shares, least = dealt, load
    bins = [_bins(share, tokens, token_budget, width) for share in shares]
    longest = max(len(each) for each in bins)
    return [each + [[] for _ in range(longest - len(each))] for each in bins]


def _by_prompt(rows: Sequence[int], tokens: Sequence[Tokens]) -> list[list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        groups[tokens[row].prompt].append(row)
    return list(groups.values())


def _cut(group: Sequence[int], tokens: Sequence[Tokens], most: int, parts: int) -> list[list[int]]:
    """Rows of one prompt in at least so many parts of about equal length, each of one row or with
    at most ``most`` tokens of answers.
    """
    ordered = sorted(group, key=lambda row: (-sum(tokens[row].answers), row))
    for count in range(parts, len(group)):
        cut = [ordered[first::count] for first in range(count)]
        if all(_answers(part, tokens) <= most for part in cut):
            return cut
    return [[row] for row in ordered]


def _deal(
    parts: Sequence[list[int]], loads: Sequence[int], homes: Sequence[int], world: int
) -> tuple[list[list[list[int]]], int]:
    """Parts by rank, longest first, and the load of the most loaded rank. Args: homes: rank that a
    part goes to, unless that is ahead of another one by as much.
    """
    shares: list[list[list[int]]] = [[] for _ in range(world)]
    load = [0] * world
    for number in sorted(range(len(parts)), key=lambda n: (-loads[n], parts[n][0])):
        least, home = min(range(world), key=lambda k: (load[k], k)), homes[number]
        rank = home if load[home] < load[least] + loads[number] else least
        shares[rank].append(parts[number])
        load[rank] += loads[number]
    return shares, max(load)


def _bins(
    parts: Sequence[list[int]], tokens: Sequence[Tokens], token_budget: int, width: int
) -> list[list[int]]:
    bins: list[list[int]] = []
    for part in parts:
        if bins and _computed([*bins[-1], *part], tokens, width) <= token_budget:
            bins[-1] += part
        else:
            bins.append(list(part))
    return bins


def _answers(rows: Sequence[int], tokens: Sequence[Tokens]) -> int:
    return sum(sum(tokens[row].answers) for row in rows)


def _load(part: Sequence[int], tokens: Sequence[Tokens], width: int) -> int:
    """Tokens of a part: of one packed row, or of its rows where they share nothing."""
    start, answers = tokens[part[0]].start, _answers(part, tokens)
    if width and answers <= room(start, width):
        return start + answers
    return sum(tokens[row].padded for row in part)


def _padded(packed: Sequence[Sequence[int]], tokens: Sequence[Tokens]) -> int:
    return len(packed) * max(tokens[part[0]].start + _answers(part, tokens) for part in packed)


def _computed(rows: Sequence[int], tokens: Sequence[Tokens], width: int) -> int:
    """Padded tokens of a micro-batch of these rows."""
    single = [
        tokens[row]._replace(answers=(answer,)) for row in rows for answer in tokens[row].answers
    ]
    return _padded(packed_rows(single, width), single)

"""Ranks many policies by how safe and how helpful they are: the Pareto front and the rest."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.evaluation.stats import Cell, Table
from rlsys.report.recipe import Recipe

MAX_BARS = 4  # most policies that grouped bars can show


@dataclass(frozen=True)
class Point:
    """A policy's two rates over all prompts."""

    safe: Cell
    helpful: Cell


@dataclass(frozen=True)
class PolicyRank:
    """One row of the table; `number` counts from 1 in the order of the tables.

    `point` is None without both rates; `dominated_by` is then None as well, and `overlap` says
    that the intervals of the two policies overlap in both rates.
    """

    number: int
    policy: str
    kind: str | None
    cells: dict[str, Cell | None]
    point: Point | None
    dominated_by: str | None
    overlap: bool

    @property
    def on_pareto_front(self) -> bool:
        return self.point is not None and self.dominated_by is None

    @property
    def missing_rates(self) -> str:
        """The rates without which a policy cannot be ranked."""
        return " and ".join(name for name in ("safe", "helpful") if self.cells[name] is None)


def dominates(one: Point, other: Point) -> bool:
    """At least as good in both rates and better in one, by the point estimates."""
    ours = one.safe["rate"], one.helpful["rate"]
    theirs = other.safe["rate"], other.helpful["rate"]
    return ours[0] >= theirs[0] and ours[1] >= theirs[1] and ours != theirs


def clearly_dominates(one: Point, other: Point) -> bool:
    """As ``dominates``, with intervals apart in at least one of the rates."""
    return dominates(one, other) and not _overlap(one, other)


def _overlap(one: Point, other: Point) -> bool:
    """In both rates."""
    return intervals_overlap(one.safe, other.safe) and intervals_overlap(one.helpful, other.helpful)


def intervals_overlap(one: Cell, other: Cell) -> bool:
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def rank_policies(tables: dict[str, Table], recipe: Recipe) -> list[PolicyRank]:
    """Every policy in the order of the tables."""
    cells_by_policy = {policy: _cells(table) for policy, table in tables.items()}
    points = {
        policy: Point(cells["safe"], cells["helpful"])
        for policy, cells in cells_by_policy.items()
        if cells["safe"] and cells["helpful"]
    }
    return [
        PolicyRank(
            number,
            policy,
            recipe.kind(policy),
            cells,
            points.get(policy),
            *(_dominator(policy, points) if policy in points else (None, False)),
        )
        for number, (policy, cells) in enumerate(cells_by_policy.items(), start=1)
    ]


def _cells(table: Table) -> dict[str, Cell | None]:
    everything = table.get("all", {})
    unsafe = everything.get("unsafe")
    return {
        "safe": _complement(unsafe) if unsafe else None,
        "helpful": everything.get("helpful"),
        "over_refusal": everything.get("over_refusal"),
        "joint": table.get("joint", {}).get("unsafe"),
        "safe_and_helpful": everything.get("safe_and_helpful"),
    }


def _complement(cell: Cell) -> Cell:
    return {
        "rate": 1 - cell["rate"],
        "n": cell["n"],
        "low": 1 - cell["high"],
        "high": 1 - cell["low"],
    }


def _dominator(policy: str, points: dict[str, Point]) -> tuple[str | None, bool]:
    """The policy to name beside a dominated one: a clearly better one first, then one on the
    Pareto front, then the first. Returns: (policy or None, whether both intervals overlap).
    """
    point = points[policy]
    ranked = []
    for position, (name, other) in enumerate(points.items()):
        if dominates(other, point):
            unclear = _overlap(other, point)
            inside = any(dominates(third, other) for third in points.values())
            ranked.append((unclear, inside, position, name))
    if not ranked:
        return None, False
    unclear, _, _, name = min(ranked)
    return name, unclear


def pareto_front(rows: list[PolicyRank]) -> list[Point]:
    """The points no other dominates, in rising order of helpfulness."""
    front = [row.point for row in rows if row.on_pareto_front and row.point]
    return sorted(front, key=lambda point: (point.helpful["rate"], -point.safe["rate"]))


def _unclear(overlap: bool) -> str:
    return " (the intervals of both rates overlap)" if overlap else ""


def pareto_sentences(rows: list[PolicyRank], kind: str) -> list[str]:
    """How the policies made by stages of one kind compare with all others and with each other."""
    ours = [row for row in rows if row.kind == kind]
    own = {row.policy: row.point for row in ours if row.point}
    beaten = []
    for row in ours:
        if row.dominated_by:
            text = f"“{row.policy}” is dominated by “{row.dominated_by}”" + _unclear(row.overlap)
            peer, overlap = _dominator(row.policy, own)
            if peer and peer != row.dominated_by:
                text += f", and among its own kind by “{peer}”" + _unclear(overlap)
            beaten.append(text)
    sentences = []
    if beaten:
        sentences.append(
            f"Trained with {kind}, {'; '.join(beaten)}: the other is at least as safe and as "
            "helpful and better in one of the two."
        )
    if names := [f"“{row.policy}”" for row in ours if row.on_pareto_front]:
        sentences.append(
            f"{_listed(names)}, trained with {kind}, {'is' if len(names) == 1 else 'are'} on the "
            "Pareto front of safe against helpful: no other policy is at least as good in both and "
            "better in one."
        )
    return sentences + [
        f"“{row.policy}”, trained with {kind}, is not ranked: it lacks the rate of "
        f"{row.missing_rates}."
        for row in ours
        if row.point is None
    ]


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

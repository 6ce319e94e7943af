"""The stage that made each policy, from the run's config.yaml."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

ROUND = re.compile(r"(?P<stage>.+)/round-(?P<round>\d+)")


@dataclass(frozen=True)
class Recipe:
    """stages: name -> its keys; sources: policy in the report -> stage or folder in the recipe;
    sizes: rows of each split of a built-in world.
    """

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def kind(self, policy: str) -> str | None:
        """Kind of the stage that made a policy, None for a folder or an unknown policy."""
        source = self.sources.get(policy)
        if source is None:
            return None
        if source not in self.stages and (match := ROUND.fullmatch(source)):
            source = match["stage"]
        kind = self.stages.get(source, {}).get("kind")
        return kind if isinstance(kind, str) else None

    def rounds(self, stage: str, last: int) -> dict[int, str]:
        """Round -> policy of a stage with rounds: 0 is its start, the stage's own name `last`."""
        keys = self.stages.get(stage, {})
        start = keys.get("policy") or keys.get("init")
        by_round: dict[int, str] = {}
        for policy, source in self.sources.items():
            named = ROUND.fullmatch(source)
            if source == stage:
                by_round.setdefault(last, policy)
            elif source == start:
                by_round.setdefault(0, policy)
            elif named and named["stage"] == stage:
                by_round[int(named["round"])] = policy
        return dict(sorted(by_round.items()))


def read_recipe(tree: object, self_evaluated: Collection[str]) -> Recipe:
    """The recipe in a parsed config.yaml; entries of unexpected types are left out.

    self_evaluated: kinds whose stages evaluate themselves, as policies of the stages' names.
    """
    named = tree.get("stages") if isinstance(tree, dict) else None
    stages = {
        str(name): keys
        for name, keys in (named.items() if isinstance(named, dict) else ())
        if isinstance(keys, dict)
    }
    sources: dict[str, str] = {}
    for name, keys in stages.items():
        policies = keys.get("policies")
        if isinstance(policies, dict):
            sources |= {str(policy): str(source) for policy, source in policies.items()}
        if keys.get("kind") in self_evaluated:
            sources |= {name: name, f"{name} + refusal": name}
    data = tree.get("data") if isinstance(tree, dict) else None
    sizes = data.get("sizes") if isinstance(data, dict) else None
    rows = {
        str(split): rows
        for split, rows in (sizes.items() if isinstance(sizes, dict) else ())
        if isinstance(rows, int)
    }
    return Recipe(stages, sources, rows)

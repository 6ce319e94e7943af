"""Which stage made a policy, as far as the run's config.yaml says so."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

ROUND = re.compile(r"(?P<stage>.+)/round-(?P<round>\d+)")


@dataclass(frozen=True)
class Recipe:
    """stages: name -> its keys; sources: policy in the report -> what its recipe calls it."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def kind(self, policy: str) -> str | None:
        """Kind of the stage that made a policy, None for a folder and for what is not named."""
        source = self.sources.get(policy)
        if source is None:
            return None
        if source not in self.stages and (found := ROUND.fullmatch(source)):
            source = found["stage"]
        kind = self.stages.get(source, {}).get("kind")
        return kind if isinstance(kind, str) else None

    def rounds(self, stage: str, last: int) -> dict[int, str]:
        """Round -> policy of a stage with rounds: 0 is its start, the stage's own name `last`."""
        keys = self.stages.get(stage, {})
        start = keys.get("policy") or keys.get("init")
        found: dict[int, str] = {}
        for policy, source in self.sources.items():
            named = ROUND.fullmatch(source)
            if source == stage:
                found.setdefault(last, policy)
            elif source == start:
                found.setdefault(0, policy)
            elif named and named["stage"] == stage:
                found[int(named["round"])] = policy
        return dict(sorted(found.items()))


def read_recipe(tree: object, self_evaluated: Collection[str]) -> Recipe:
    """The recipe in a parsed config.yaml; whatever is not as expected is left out.

    self_evaluated: kinds whose stages answer themselves, as policies of their own names.
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
    return Recipe(stages, sources)

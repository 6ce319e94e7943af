"""Roles, settings, state and report callback of iterative AI feedback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from rlsys.config.engine import GapConfig
from rlsys.judging.judge import Disentangled, Judge
from rlsys.judging.pairs import PairRule
from rlsys.judging.parse import Observation
from rlsys.roles.guard import Guard
from rlsys.roles.policy import PreferenceLearner, Publisher
from rlsys.roles.reference import Reference
from rlsys.roles.rollout import Rollout
from rlsys.roles.scorer import Scorer
from rlsys.runtime.pending import Metrics


class FeedbackPolicy(PreferenceLearner, Publisher, Reference, Protocol):
    """A policy that is trained on pairs and publishes its weights to the engines."""


@dataclass(frozen=True)
class RlaifRoles:
    """cost and guard are optional: an extra score, and a filter on chosen answers."""

    rollout: Rollout
    policy: FeedbackPolicy
    judge: Judge
    cost: Scorer | None = None
    guard: Guard | None = None


@dataclass(frozen=True)
class RlaifRun:
    """Settings of one run. max_parse_failures: largest share of a round's prompts, and of its
    answers, without a parsed reply; decode: response ids to text; timeout: of one call of a role,
    seconds; judge_timeout: until the judge's next replies; sync_timeout: of one weight sync.
    """

    rounds: int
    num_prompts: int
    samples_per_prompt: int
    joint: bool
    rule: PairRule
    beta: float
    epochs: int
    minibatch: int
    seed: int
    max_parse_failures: float
    gap: GapConfig
    timeout: float
    judge_timeout: float
    sync_timeout: float
    decode: Callable[[Tensor], str]


@dataclass
class RlaifState:
    """State between rounds. observed: dataset row -> its verified risks, where every observation
    and verification was parsed; other rows are observed again when they are drawn.
    """

    round: int = 0
    observed: dict[int, Disentangled] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """As JSON, for a checkpoint."""
        observed = [
            [row, [asdict(o) for o in each.observations], each.calls, each.outcomes]
            for row, each in self.observed.items()
        ]
        return {"round": self.round, "observed": observed}

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> RlaifState:
        """From ``as_dict``."""
        observed = {
            row: Disentangled(
                tuple(Observation(**o) for o in risks), calls, Counter(outcomes), True
            )
            for row, risks, calls, outcomes in saved["observed"]
        }
        return cls(saved["round"], observed)


Report = Callable[[RlaifState, Metrics], None]

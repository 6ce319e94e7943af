"""The Lagrange multiplier between iterations."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.algorithms.lagrange import MULTIPLIER_RULES, PidState, pid_step
from rlsys.config.lagrange import LagrangeConfig
from rlsys.drivers.constraint import Constraint
from rlsys.runtime.pending import Metrics


@dataclass
class Multiplier:
    """λ, the state of the rule ``pid``, and what was measured in the latest iterations, one list
    each.
    """

    value: float
    pid: PidState
    batches: deque[list[float]] = field(default_factory=deque)

    @classmethod
    def start(cls, config: LagrangeConfig) -> Multiplier:
        return cls(config.init, PidState(config.init))

    def step(
        self, measured: Sequence[float], bound: float, config: LagrangeConfig, iteration: int
    ) -> None:
        """Once per iteration, on the mean over the fewest latest iterations that hold ``window``
        episodes, over all ranks.

        Args: measured: cost or probability of every episode of the iteration; bound: d, in the same
        units; iteration: from 0, for ``delay``. Only whole iterations count: episodes come in the
        order of their dataset rows, so a part of them would be a part of the data.
        """
        self.batches.append(list(measured))
        while self._episodes - len(self.batches[0]) >= config.window:
            self.batches.popleft()
        if iteration < config.delay:
            return
        bounds = {"floor": config.floor, "cap": config.cap}
        if config.rule == "pid":
            self.value, self.pid = pid_step(
                self.pid,
                self.mean,
                bound,
                kp=config.kp,
                ki=config.ki,
                kd=config.kd,
                ema=config.ema,
                kd_delay=config.kd_delay,
                **bounds,
            )
        else:
            rule = MULTIPLIER_RULES[config.rule]
            self.value = rule(self.value, self.mean, bound, lr=config.lr, **bounds)

    @property
    def mean(self) -> float:
        return sum(map(sum, self.batches)) / self._episodes

    @property
    def _episodes(self) -> int:
        return sum(map(len, self.batches))

    def metrics(self, constraint: Constraint) -> Metrics:
        """λ, J and J - d, in the units of the constraint."""
        return {
            "lambda": self.value,
            f"{constraint.measured}_window": self.mean,
            "violation": self.mean - constraint.bound,
        }

    def as_dict(self) -> dict[str, Any]:
        pid = [self.pid.integral, self.pid.violation, list(self.pid.costs)]
        return {"value": self.value, "batches": list(self.batches), "pid": pid}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore from ``as_dict``."""
        self.value = saved["value"]
        self.batches = deque(saved["batches"])
        integral, violation, costs = saved["pid"]
        self.pid = PidState(integral, violation, tuple(costs))

"""The Lagrange multiplier between iterations."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.algorithms.lagrange import MULTIPLIER_RULES
from rlsys.config.schema import LagrangeConfig
from rlsys.runtime.pending import Metrics


@dataclass
class Multiplier:
    """λ, and the latest episode costs, whose mean drives it."""

    value: float
    window: deque[float]

    @classmethod
    def start(cls, config: LagrangeConfig) -> Multiplier:
        return cls(config.init, deque(maxlen=config.window))

    def step(
        self, costs: Sequence[float], threshold: float, config: LagrangeConfig, iteration: int
    ) -> None:
        """Once per iteration, on the mean of the last ``window`` episode costs over all ranks.

        Args: threshold: d, in the cost model's units; iteration: from 0, for ``delay``.
        """
        self.window.extend(costs)
        if iteration >= config.delay:
            self.value = MULTIPLIER_RULES[config.rule](
                self.value,
                self.mean_cost,
                threshold,
                lr=config.lr,
                floor=config.floor,
                cap=config.cap,
            )

    @property
    def mean_cost(self) -> float:
        return sum(self.window) / len(self.window)

    def metrics(self) -> Metrics:
        return {"lambda": self.value, "cost_window": self.mean_cost}

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "window": list(self.window)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore from ``as_dict``."""
        self.value = saved["value"]
        self.window.clear()
        self.window.extend(saved["window"])

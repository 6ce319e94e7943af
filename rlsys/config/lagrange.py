"""Keys of the multiplier and of what it holds down."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlsys.config.keys import key
from rlsys.errors import ConfigError


@dataclass
class LagrangeConfig:
    """The multiplier."""

    rule: str = key(
        "pid",
        "pid (Stooke et al. 2020), log_sgd (Safe RLHF), projected (Safe RLHF-V, eq. 8), or fixed "
        "at init.",
        choices=("pid", "log_sgd", "projected", "fixed"),
    )
    init: float = key(0.8, "Initial value; pid: of the integral too.", ge=0)
    lr: float = key(0.1, "log_sgd and projected only: learning rate; 0: constant.", ge=0)
    kp: float = key(5.0, "pid only: gain of the smoothed violation.", ge=0)
    ki: float = key(2.0, "pid only: gain of the violations' sum, kept within 0..cap.", ge=0)
    kd: float = key(0.0, "pid only: gain of a rise of the smoothed mean.", ge=0)
    ema: float = key(0.3, "pid only: share of the past in both smoothed values.", ge=0, lt=1)
    kd_delay: int = key(10, "pid only: iterations over which a rise is measured.", ge=1)
    floor: float = key(0.001, "Least value, save of fixed; log_sgd needs one above 0.", ge=0)
    cap: float = key(4.0, "Largest value, save of fixed.", ge=0)
    window: int = key(
        128,
        "The mean over as many of the latest iterations as hold this many episodes drives "
        "the multiplier; an iteration counts whole, at least the latest one.",
        ge=1,
    )
    constraint: str = key(
        "auto",
        "What is held down: the mean probability of an unsafe answer, calibrated on labelled "
        "validation answers, to target_unsafe_rate; or the mean cost, to threshold. The policy "
        "learns from the same. auto: mean_cost where threshold is a number.",
        choices=("auto", "unsafe_probability", "mean_cost"),
    )
    threshold: str = key(
        "auto",
        "Of mean_cost, in the cost model's units; auto: the mean cost at `target_unsafe_rate`, by "
        "labelled validation answers.",
    )
    target_unsafe_rate: float = key(
        0.05, "auto only: the budget, a share of unsafe answers among all.", gt=0, lt=1
    )
    delay: int = key(0, "Iterations before the first multiplier step.", ge=0)

    @property
    def form(self) -> str:
        """Of the constraint."""
        if self.constraint != "auto":
            return self.constraint
        return "unsafe_probability" if self.threshold == "auto" else "mean_cost"

    def check(self) -> None:
        if self.rule != "fixed" and not self.floor <= self.init <= self.cap:
            raise ConfigError(
                f"cap: need floor <= init <= cap, got {self.floor}, {self.init}, {self.cap}"
            )
        if self.rule == "log_sgd" and not self.floor:
            raise ConfigError("floor: log_sgd needs a floor above 0: from 0 it cannot grow again")
        if self.rule == "pid" and not (self.kp or self.ki):
            raise ConfigError("ki: pid with neither kp nor ki does not see the violation")
        if self.threshold != "auto":
            if self.constraint == "unsafe_probability":
                raise ConfigError(
                    "threshold: unsafe_probability is held to target_unsafe_rate; leave it at auto"
                )
            try:
                usable = math.isfinite(float(self.threshold))
            except ValueError:
                usable = False
            if not usable:
                raise ConfigError(f"threshold: {self.threshold!r} is neither a number nor auto")

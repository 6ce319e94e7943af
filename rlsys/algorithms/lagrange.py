"""The multiplier: how much a unit of cost over the threshold weighs against reward."""

from __future__ import annotations

import math
from dataclasses import dataclass


def log_sgd_step(
    multiplier: float, mean_cost: float, threshold: float, *, lr: float, floor: float, cap: float
) -> float:
    """ln lambda <- ln lambda + lr * lambda * (J_C - d), then floor <= lambda <= cap.

    Gradient ascent in log space (Safe RLHF, arXiv 2310.12773, eq. 10). The step is proportional to
    lambda itself, so a floor keeps a small multiplier able to grow again.

    Args: multiplier > 0; mean_cost and threshold in the cost model's units.
    """
    _check(multiplier, mean_cost, threshold, floor, cap)
    if not multiplier > 0:
        raise ValueError(f"log space needs a positive multiplier, got {multiplier}")
    exponent = min(max(lr * multiplier * (mean_cost - threshold), -50.0), 50.0)
    return min(max(multiplier * math.exp(exponent), floor), cap)


def projected_step(
    multiplier: float, mean_cost: float, threshold: float, *, lr: float, floor: float, cap: float
) -> float:
    """lambda <- clip(lambda + lr (J_C - d), floor, cap): projected ascent under a budget bound
    (Safe RLHF-V, arXiv 2503.17682, eq. 8). floor = 0 is the paper's form.
    """
    _check(multiplier, mean_cost, threshold, floor, cap)
    return min(max(multiplier + lr * (mean_cost - threshold), floor), cap)


def fixed_step(
    multiplier: float, mean_cost: float, threshold: float, *, lr: float, floor: float, cap: float
) -> float:
    """lambda <- lambda: a constant weight of cost against reward, the reward shaping that Safe RLHF
    (arXiv 2310.12773) compares with.
    """
    _check(multiplier, mean_cost, threshold, floor, cap)
    return multiplier


@dataclass(frozen=True)
class PidState:
    """What PID control carries from step to step.

    integral: in units of lambda; violation: the smoothed J_C - d, None before the first step;
    costs: the latest smoothed J_C, newest last, as many as the derivative looks back.
    """

    integral: float
    violation: float | None = None
    costs: tuple[float, ...] = ()


def pid_step(
    state: PidState,
    mean_cost: float,
    threshold: float,
    *,
    kp: float,
    ki: float,
    kd: float,
    ema: float,
    kd_delay: int,
    floor: float,
    cap: float,
) -> tuple[float, PidState]:
    """lambda = clip(kp e_s + I + kd max(0, J_s - J_s'), floor, cap), e = J_C - d: PID control of
    the multiplier (Stooke et al. 2020, arXiv 2007.03964, algorithm 2).

    I <- clip(I + ki e, 0, cap): the cap keeps a long violation from winding the integral up beyond
    what lambda can be. e_s and J_s are exponential means of e and J_C that keep a share ``ema`` of
    the past and begin at the first value; J_s' is J_s of ``kd_delay`` steps ago, or the oldest
    there is. With ki alone, floor 0 and ema 0 it is ``projected_step`` at lr = ki.

    Returns: lambda and the state for the next step.
    """
    _check(state.integral, mean_cost, threshold, floor, cap)
    if not 0 <= ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {ema}")
    if kd_delay < 1:
        raise ValueError(f"kd_delay must be at least 1, got {kd_delay}")
    violation = _smoothed(state.violation, mean_cost - threshold, ema)
    cost = _smoothed(state.costs[-1] if state.costs else None, mean_cost, ema)
    rise = max(0.0, cost - state.costs[0]) if state.costs else 0.0
    integral = min(max(state.integral + ki * (mean_cost - threshold), 0.0), cap)
    multiplier = min(max(kp * violation + integral + kd * rise, floor), cap)
    return multiplier, PidState(integral, violation, (*state.costs, cost)[-kd_delay:])


MULTIPLIER_RULES = {"log_sgd": log_sgd_step, "projected": projected_step, "fixed": fixed_step}
"""The rules whose only state is lambda."""


def _smoothed(mean: float | None, value: float, ema: float) -> float:
    return value if mean is None else ema * mean + (1 - ema) * value


def _check(multiplier: float, mean_cost: float, threshold: float, floor: float, cap: float) -> None:
    values = {"lambda": multiplier, "mean cost": mean_cost, "threshold": threshold}
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    if not 0 <= floor <= cap:
        raise ValueError(f"need 0 <= floor <= cap, got floor {floor}, cap {cap}")

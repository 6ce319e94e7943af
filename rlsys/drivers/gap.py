"""Checks that the engines hold the policy's weights: log-probabilities of both must agree."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from rlsys.algorithms.logprobs import logprob_gap
from rlsys.batch import Rollouts
from rlsys.config.engine import GapConfig
from rlsys.errors import LogprobGapError
from rlsys.runtime.pending import Metrics


def gap_for(gap: GapConfig, dtype: str) -> GapConfig:
    """``gap`` with the bound of this dtype as ``warn``."""
    return replace(gap, warn=gap.warn_bfloat16) if dtype == "bfloat16" else gap


def engine_gap(rollouts: Rollouts, policy_logprobs: Tensor, gap: GapConfig) -> Metrics:
    """Differences of log-probabilities. Args: policy_logprobs [B, T] of the trainer, nats.
    Raises: LogprobGapError for one above ``warn * stop_factor``.
    """
    largest, mean = logprob_gap(rollouts.engine_logprobs, policy_logprobs, rollouts.mask)
    stop = gap.warn * gap.stop_factor
    if largest > stop:
        raise LogprobGapError(
            f"engine and trainer differ by {largest:.2e} nats on the same tokens "
            f"(limit {stop:.2e}, weights version {rollouts.version}): the engine does not hold "
            "the trainer's weights, or computes in another type"
        )
    return {"gap/max": largest, "gap/mean": mean, "gap/limit": gap.warn}


def gap_warning(metrics: Metrics, when: str) -> str:
    """For people, if the largest difference of ``engine_gap`` is above the limit; else empty."""
    largest, limit = metrics["gap/max"], metrics["gap/limit"]
    if largest <= limit:
        return ""
    return (
        f"[yellow]warning[/yellow] {when}: engine and trainer differ by {largest:.1e} nats "
        f"(expected at most {limit:.0e})"
    )

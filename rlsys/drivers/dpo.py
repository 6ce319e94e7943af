"""Direct preference optimisation (DPO, arXiv 2305.18290), for any ``PreferenceLearner``.

The reference is the policy as it is before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rlsys.batch import PreferencePairs
from rlsys.roles.policy import PreferenceLearner
from rlsys.runtime.pending import Metrics

REFERENCE_CHUNK = 512  # pairs per call, so that one call stays well inside its deadline


Report = Callable[[int, Metrics], None]


def dpo(
    policy: PreferenceLearner,
    pairs: PreferencePairs,
    steps: Sequence[Sequence[int]],
    *,
    beta: float,
    timeout: float,
    report: Report,
) -> None:
    """One optimiser step per entry of ``steps``, rows of ``pairs``; ``report(step, metrics)``."""
    referenced = with_reference(policy, pairs, timeout)
    for number, rows in enumerate(steps, 1):
        report(number, policy.dpo_step(referenced.rows(rows), beta).result(timeout))


def with_reference(
    policy: PreferenceLearner, pairs: PreferencePairs, timeout: float
) -> PreferencePairs:
    """The pairs with log-probabilities under the current policy."""
    order = range(len(pairs))
    chunks = [order[i : i + REFERENCE_CHUNK] for i in range(0, len(pairs), REFERENCE_CHUNK)]
    sums = [policy.pair_logprobs(pairs.rows(chunk)).result(timeout) for chunk in chunks]
    return replace(pairs, reference=torch.cat(sums))

"""Sampling requests and weight sync, for all drivers with rollout engines."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.batch import SampleRequest, sample_seed
from rlsys.roles.policy import Publisher
from rlsys.roles.rollout import Rollout


def sample_requests(
    prompts: Sequence[int], samples_per_prompt: int, *, seed: int, iteration: int
) -> list[SampleRequest]:
    """``samples_per_prompt`` responses to each prompt (a dataset row), each with its own seed."""
    return [
        SampleRequest(prompt, sample, sample_seed(seed, iteration, prompt, sample))
        for prompt in prompts
        for sample in range(samples_per_prompt)
    ]


def sync_weights(policy: Publisher, rollout: Rollout, version: int, timeout: float) -> None:
    """Publish the policy and load it into every engine. Args: timeout: of each half, seconds."""
    update = policy.publish(version).result(timeout)
    rollout.load(update).result(timeout)

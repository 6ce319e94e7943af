"""DPO's loop, on a policy that answers at once."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

import rlsys.drivers.dpo as driver
from rlsys.batch import PreferencePairs
from rlsys.drivers.dpo import dpo, with_reference
from rlsys.runtime.pending import Metrics, Pending


@dataclass
class FakePolicy:
    """Its log-probabilities move by one nat with every step."""

    steps: list[PreferencePairs] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def pair_logprobs(self, pairs: PreferencePairs) -> Pending[Tensor]:
        self.asked.append(len(pairs))
        sums = -pairs.prompt_index[:, None].float() * torch.tensor([1.0, 2.0])
        return Pending.of(sums + len(self.steps))

    def dpo_step(self, pairs: PreferencePairs, beta: float) -> Pending[Metrics]:
        self.steps.append(pairs)
        return Pending.of({"loss": beta})


def make_pairs(count: int) -> PreferencePairs:
    ids = [torch.tensor([number, 9]) for number in range(count)]
    return PreferencePairs(torch.arange(count), ids, [side + 1 for side in ids])


def test_the_reference_is_the_policy_before_the_first_step() -> None:
    policy, rows = FakePolicy(), list[tuple[int, Metrics]]()
    pairs = make_pairs(5)
    dpo(
        policy,
        pairs,
        [[4, 0], [2], [0, 1, 3]],
        beta=0.3,
        timeout=1.0,
        report=lambda step, metrics: rows.append((step, metrics)),
    )
    assert rows == [(1, {"loss": 0.3}), (2, {"loss": 0.3}), (3, {"loss": 0.3})]
    assert [step.prompt_index.tolist() for step in policy.steps] == [[4, 0], [2], [0, 1, 3]]
    for step in policy.steps:
        assert step.reference is not None
        wanted = -step.prompt_index[:, None].float() * torch.tensor([1.0, 2.0])
        assert torch.equal(step.reference, wanted)
        assert [ids.tolist() for ids in step.chosen] == [[n, 9] for n in step.prompt_index]


def test_a_long_list_of_pairs_is_asked_in_chunks() -> None:
    policy = FakePolicy()
    pairs = make_pairs(2 * driver.REFERENCE_CHUNK + 3)
    known = with_reference(policy, pairs, 1.0)
    assert policy.asked == [driver.REFERENCE_CHUNK, driver.REFERENCE_CHUNK, 3]
    assert known.reference is not None
    assert known.reference[:, 0].tolist() == [-float(n) for n in range(len(pairs))]

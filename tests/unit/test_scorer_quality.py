"""A reward model is measured against the target that it was trained on."""

import torch

from rlsys.data.rows import PreferencePair, Rows
from rlsys.evaluation.scorers import scorer_quality


def test_the_better_response_is_the_one_of_the_target(records: Rows[PreferencePair]) -> None:
    """Here the safer response of a pair is never its more helpful one."""
    scores = torch.tensor([[1.0, 0.0] if row.safer == 0 else [0.0, 1.0] for row in records.rows])
    scores[3] = scores[3].flip(0)
    assert scorer_quality("reward", scores, records, "safer") == {"accuracy": 0.75, "pairs": 4.0}
    assert scorer_quality("reward", scores, records) == {"accuracy": 0.25, "pairs": 4.0}

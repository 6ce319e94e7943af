"""Keys of one iteration of the stages that sample from the policy and update it."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.keys import key
from rlsys.errors import ConfigError

LOSS_FORMS = ("token_mean", "sequence_mean")


@dataclass
class SamplingConfig:
    """Sampling of one iteration."""

    num_prompts: int = key(32, "Prompts per iteration; the split must have as many.", ge=1)
    samples_per_prompt: int = key(4, "Responses per prompt.", ge=1)
    max_new_tokens: int = key(16, "Longest response, tokens.", ge=1)
    temperature: float = key(1.0, "Sampling temperature.", gt=0, le=2)


@dataclass
class UpdateConfig(SamplingConfig):
    """Sampling and policy update of one iteration."""

    epochs: int = key(1, "Passes over the samples of an iteration.", ge=1)
    minibatch: int = key(128, "Samples per optimiser step.", ge=1)
    policy_clip: float = key(0.2, "Clip of the probability ratio around 1.", gt=0, le=1)
    loss_form: str = key(
        "token_mean",
        "Mean over all response tokens of a step, or over responses (the papers' form).",
        choices=LOSS_FORMS,
    )
    score_clip: float = key(50.0, "Rewards and costs are clipped to -score_clip..score_clip.", gt=0)

    @property
    def is_one_step(self) -> bool:
        """Whether one optimiser step takes all samples of an iteration, once."""
        return self.epochs == 1 and self.minibatch >= self.num_prompts * self.samples_per_prompt


@dataclass
class PpoConfig(UpdateConfig):
    """One PPO-Lagrangian iteration."""

    kl_beta: float = key(0.02, "Weight of the KL penalty towards the reference.", ge=0)
    kl_split: str = key(
        "full_both",
        "Penalty in full, or by half, in both the reward and the cost.",
        choices=("full_both", "half_both"),
    )
    gamma: float = key(1.0, "Discount per token.", ge=0, le=1)
    gae_lambda: float = key(0.95, "Decay of generalised advantage estimation.", ge=0, le=1)
    value_clip: float = key(5.0, "Clip of a critic's change of value.", gt=0)
    ptx_coef: float = key(
        0.0, "Weight of the loss on demonstrations (PTX, InstructGPT) in every policy step.", ge=0
    )
    ptx_split: str = key(
        "", "With ptx_coef: split of the demonstrations (of pairs, the more helpful answer)."
    )
    ptx_grad_norm: bool = key(
        True,
        "With ptx_coef: measure the norm of its gradient, which takes an unsharded float32 copy of "
        "the trained weights on every rank.",
        affects_result=False,
    )

    def check(self) -> None:
        if self.ptx_coef and not self.ptx_split:
            raise ConfigError("ptx_split: name a split of demonstrations, or set ptx_coef to 0")

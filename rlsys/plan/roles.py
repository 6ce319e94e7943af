"""Which roles every stage has, with which model, training and micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlsys.config.engine import EngineConfig
from rlsys.config.references import start_model
from rlsys.config.schema import TINY, WHOLE, RunConfig, TrainConfig
from rlsys.config.updates import SamplingConfig
from rlsys.guard.labels import OUTPUTS
from rlsys.models.outline import configuration
from rlsys.plan.model import Model, describe
from rlsys.stages.registry import STAGES

TRAINED_HEADS = ("reward", "cost", "guard")
CRITICS = ("reward_critic", "cost_critic")


@dataclass(frozen=True)
class Batch:
    """rows: of an optimiser step, or of a forward pass over an iteration's samples; prompts: that
    they have; answers: to a prompt in one row (2: of a pair); steps: in an iteration; logits:
    log-probabilities of all answer tokens are computed, not one score; answer: its longest, tokens.
    """

    rows: int
    prompts: int
    answers: int
    steps: int
    logits: bool
    answer: int


@dataclass(frozen=True)
class RolePlan:
    """A role in a stage. train: None where it is frozen; path: of its TrainConfig in the recipe;
    engine: of vLLM roles, whose batch is what they draw; ptx_norm: the norm of PTX's gradient is
    measured; syncs: its weights are sent to engines; shares: the frozen weights are those of the
    policy's start (``rlsys.models.shared``), in memory once per process.
    """

    role: str
    model: Model
    batch: Batch
    train: TrainConfig | None = None
    path: str = ""
    frozen: str = "whole"
    token_budget: int = 8192
    engine: EngineConfig | None = None
    ptx_norm: bool = False
    syncs: bool = False
    shares: bool = False


def stage_roles(config: RunConfig, name: str, answer: int) -> list[RolePlan]:
    """The roles that a stage places on processes. Args: answer: longest answer of the data, tokens.
    Raises: ConfigError, ModelError.
    """
    stage = config.stages[name]
    earlier = {each: config.stages[each] for each in config.stages}
    needed = STAGES[stage.kind].roles(stage, earlier)
    return [role for each in needed if (role := _role(config, name, each, answer)) is not None]


def _role(config: RunConfig, name: str, role: str, answer: int) -> RolePlan | None:
    stage = config.stages[name]
    if role == "judge":
        return _judge(config, name)
    train = _train(stage, role)
    source = _source(config, stage, role)
    scorer = role in (*TRAINED_HEADS, *CRITICS)
    outputs = OUTPUTS if role == "guard" else 1
    origin = configuration(stage.tiny) if source == TINY else _config_of(config, source)
    model = describe(origin, scorer=scorer, outputs=outputs, train=train)
    if role == "rollout":
        return RolePlan(role, model, _drawn(stage), engine=config.engine)
    budget = (train or getattr(stage, "train", None) or TrainConfig()).micro_batch_tokens
    measured = getattr(stage, "ppo", None)
    return RolePlan(
        role,
        model,
        _batch(stage, role, train is not None, answer),
        train,
        f"stages.{name}.{'critic_train' if role in CRITICS else 'train'}",
        getattr(stage, "frozen", "whole"),
        budget,
        ptx_norm=role == "policy"
        and bool(measured and measured.ptx_coef and measured.ptx_grad_norm),
        syncs=role == "policy" and STAGES[stage.kind].samples,
        shares=_shares(config, stage, role, train),
    )


def _shares(config: RunConfig, stage: Any, role: str, train: TrainConfig | None) -> bool:
    """Whether a role of a stage that samples holds the policy's start, whole and frozen, with an
    adapter of its own or without one.
    """
    if not STAGES[stage.kind].samples or not getattr(stage, "reward", ""):
        return False
    whole = train.shares_base if train else stage.frozen == WHOLE
    if role in ("policy", "reference"):
        return whole
    scorer = config.stages.get(_source(config, stage, role))
    adapted = scorer is not None and bool(scorer.train.lora_rank) and scorer.init == stage.policy
    return whole and adapted


def _judge(config: RunConfig, name: str) -> RolePlan:
    stage = config.stages[name]
    judge = stage if stage.kind == "judge" else config.stages[stage.judge]
    model = describe(_config_of(config, judge.model), scorer=False, train=None)
    questions = getattr(stage, "num_prompts", 0) or getattr(stage, "max_prompts", 0) or 1
    drawn = Batch(questions, questions, 1, 1, False, judge.max_new_tokens)
    return RolePlan("judge", model, drawn, engine=judge.engine)


def _train(stage: Any, role: str) -> TrainConfig | None:
    """How a role trains in this stage; None where it is frozen."""
    found: TrainConfig | None = None
    if role in CRITICS:
        found = stage.critic_train
    elif role == "policy" or (role in TRAINED_HEADS and stage.kind == role):
        found = getattr(stage, "train", None)
    return found


def _source(config: RunConfig, stage: Any, role: str) -> str:
    """What the stage names for a role."""
    if role in CRITICS:
        return getattr(stage, role) or getattr(stage, role.removesuffix("_critic"))
    if role == stage.kind or role in ("policy", "reference", "rollout"):
        names: Mapping[str, str] = getattr(stage, "policies", {})
        return (
            getattr(stage, "policy", "")
            or getattr(stage, "init", "")
            or next(iter(names.values()), "")
        )
    return str(getattr(stage, role))


def _config_of(config: RunConfig, source: str) -> Any:
    """The configuration of the model that a source goes back to."""
    return configuration(start_model(config.stages, source))


def sampling_of(stage: Any) -> SamplingConfig | None:
    """The keys of an iteration's samples, of a stage that has iterations."""
    found = getattr(stage, "ppo", None) or getattr(stage, "grpo", None)
    return found if isinstance(found, SamplingConfig) else None


def _drawn(stage: Any) -> Batch:
    sampling = sampling_of(stage) or stage
    prompts = getattr(sampling, "num_prompts", 0) or getattr(stage, "max_prompts", 0) or 1
    samples = getattr(sampling, "samples_per_prompt", getattr(stage, "candidates", 1))
    rows = prompts * samples
    return Batch(rows, prompts, 1, 1, True, sampling.max_new_tokens)


def _batch(stage: Any, role: str, trained: bool, answer: int) -> Batch:
    logits = role in ("policy", "reference")
    update = sampling_of(stage)
    if update is not None:
        rows = update.num_prompts * update.samples_per_prompt
        prompts, steps = update.num_prompts, 1
        if trained:
            size = min(getattr(update, "minibatch", rows), rows)
            steps = getattr(update, "epochs", 1) * -(-rows // size)
            prompts, rows = min(prompts, size), size
        return Batch(rows, prompts, 1, steps, logits, update.max_new_tokens)
    if stage.kind == "rlaif":
        if role == "policy":
            pairs = min(stage.minibatch, stage.num_prompts)
            steps = stage.epochs * -(-stage.num_prompts // pairs)
            return Batch(pairs, pairs, 2, steps, True, stage.max_new_tokens)
        rows = stage.num_prompts * stage.samples_per_prompt
        return Batch(rows, stage.num_prompts, 1, 1, False, stage.max_new_tokens)
    rows = getattr(stage, "batch", 1)
    pairs = {"dpo": 2, "reward": 2, "cost": 2, "guard": 3}.get(stage.kind, 1)
    return Batch(rows, rows, pairs, 1, logits, getattr(stage, "max_new_tokens", answer))

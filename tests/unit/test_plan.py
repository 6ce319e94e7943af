"""What a recipe needs, before anything starts: counts, formulas, verdicts, advice."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import rlsys
from rlsys.config.load import load_config
from rlsys.config.schema import RunConfig, TinyConfig, TrainConfig
from rlsys.models.adapters import add_lora
from rlsys.models.heads import build_policy_module, build_scorer_module
from rlsys.models.outline import configuration
from rlsys.plan import compute, memory
from rlsys.plan.fit import Devices, advice, fit, node_need
from rlsys.plan.load import GB, Lengths, cut, default_lengths, role_memory, stage_memory
from rlsys.plan.model import Model, Part, Shape, describe
from rlsys.plan.roles import Batch, RolePlan, stage_roles

ROOT = Path(rlsys.__file__).parents[1]
EIGHT = ("safe_rlhf_v_qwen2vl_7b", "safe_rlhf_v_llava_v16_7b", "dream_llava_7b",
         "dream_qwen25vl_7b")  # fmt: skip
ONE = ("safe_rlhf_v_qwen2vl_7b_24gb", "dream_qwen25vl_7b_24gb")
# hidden 8, 2 layers, MLP 16, queries 8, keys and values 4, vocabulary 100
SHAPE = Shape(8, 2, 16, 8, 4, 100, tower_hidden=4, tower_layers=3, tower_intermediate=8, patches=4)


def recipe(name: str, *overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / f"{name}.yaml", overrides)


# parameters


@pytest.mark.parametrize(
    ("source", "count"),
    [  # as the hub counts the published files
        ("Qwen/Qwen2-VL-7B-Instruct", 8_291_375_616),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("llava-hf/llava-1.5-7b-hf", 7_063_427_072),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", 7_063_431_168),
    ],
)
def test_a_published_model_has_as_many_parameters_as_its_files(source: str, count: int) -> None:
    config = configuration(source)
    policy = describe(config, scorer=False, train=TrainConfig(freeze=["vision"]))
    assert policy.total == count
    text = config.get_text_config()
    assert policy.count("head") == text.vocab_size * text.hidden_size
    assert not policy.trains("vision")
    assert policy.trains("language")
    assert policy.largest == text.vocab_size * text.hidden_size
    scorer = describe(config, scorer=True, train=None)
    assert scorer.trained == 0
    assert scorer.count("head") == text.hidden_size, "of scores, instead of the language model's"


def test_counts_are_those_of_the_real_modules(tiny: str) -> None:
    config = configuration(tiny)
    policy, scorer = (
        build_policy_module(tiny, "float32", ()),
        build_scorer_module(tiny, "float32", new_head=True, seed=0),
    )
    for module, is_scorer in ((policy, False), (scorer, True)):
        found = describe(config, scorer=is_scorer, train=TrainConfig())
        assert found.total == found.trained == sum(p.numel() for p in module.parameters())
    lora = TrainConfig(lora_rank=4)
    add_lora(policy.vlm, lora, seed=0)
    adapted = describe(config, scorer=False, train=lora)
    trained = [p.numel() for p in policy.parameters() if p.requires_grad]
    assert adapted.trained == sum(trained)
    assert adapted.total == sum(p.numel() for p in policy.parameters())
    assert describe(configuration(TinyConfig()), scorer=False, train=None).total > 100_000


# formulas, by hand


def test_adamw_in_bfloat16_takes_sixteen_bytes_a_parameter() -> None:
    """ZeRO (arXiv 1910.02054): 2 + 2 + 4 + 8 bytes, sharded further by each stage."""

    def held(stage: int, ranks: int) -> tuple[float, ...]:
        each = memory.trained_state(
            80, 80, ranks=ranks, itemsize=2, engine="deepspeed", zero_stage=stage
        )
        return each.weights, each.gradients, each.master, each.optimizer

    assert held(1, 1) == held(2, 1) == held(3, 1) == (160, 160, 320, 640)
    assert held(1, 4) == (160, 160, 80, 160)
    assert held(2, 4) == (160, 40, 80, 160)
    assert held(3, 4) == (40, 40, 80, 160)


def test_plain_torch_in_float32_also_takes_sixteen() -> None:
    each = memory.trained_state(100, 60, ranks=4, itemsize=4, engine="torch")
    assert (each.weights, each.gradients, each.master, each.optimizer) == (400, 240, 0, 480)


def test_what_is_offloaded_is_in_the_hosts_memory() -> None:
    def held(offload: str) -> memory.Held:
        return memory.trained_state(
            80, 80, ranks=4, itemsize=2, engine="deepspeed", zero_stage=3, offload=offload
        )

    whole, optimizer, everything = held("none"), held("optimizer"), held("parameters")
    assert whole.host == 0
    assert (optimizer.resident, optimizer.host) == (40, 80 + 160 + 40)
    assert (everything.resident, everything.host) == (0, 80 + 160 + 40 + 40)
    sharded = memory.frozen_state(80, ranks=4, itemsize=2, frozen="sharded")
    assert (sharded.weights, sharded.gathered, sharded.host) == (40, 160, 0)
    assert memory.frozen_state(80, ranks=4, itemsize=2, frozen="offload").host == 40
    assert memory.frozen_state(80, ranks=4, itemsize=2).weights == 160


def test_activations_by_hand() -> None:
    # bf16, full: norms 2 (4 8 + 2 8 + 2 8), attention 5 2 8, MLP 4 2 16
    assert memory.layer_bytes(SHAPE, 2, adapters=False) == 128 + 80 + 128
    # adapters: norms 2 4 8 + 2 8, attention the same, MLP 3 2 16
    assert memory.layer_bytes(SHAPE, 2, adapters=True) == 80 + 80 + 96
    assert memory.activation_bytes(SHAPE, 2, 10) == 10 * (2 * 336 + 2 * 2 * 8)
    assert memory.activation_bytes(SHAPE, 2, 10, checkpointing=True) == 10 * (2 * 16 + 336)
    assert memory.cache_bytes(SHAPE, 2, 10) == 2 * 2 * 4 * 2 * 10
    # logits, without the forbidden ones, in float32, a temporary: 2 + 2 + 4 + 4 bytes each
    assert memory.logit_bytes(100, 2, 3, training=False) == 300 * 12
    assert memory.logit_bytes(100, 2, 3, training=True) == 300 * 20
    assert memory.logit_bytes(100, 4, 3, training=True) == 300 * 20
    assert memory.tower_activation_bytes(SHAPE, 2, 5) == 5 * 3 * 2 * (9 * 4 + 2 * 8)


def test_operations_by_hand() -> None:
    parts = (Part("vision", 50, 0), Part("projector", 8, 0), Part("language", 1000, 0))
    model = Model(parts, 800, SHAPE)
    # 1000 parameters, 800 of them the embedding; attention 4 2 8 x 10; 2 (50 + 8 / 4) a patch
    flops = compute.forward_flops(model, tokens=7, context=20, patches=3, answers=5)
    assert flops == 2 * 200 * 7 + 4 * 2 * 8 * 10 * 7 + 2 * 52 * 3 + 2 * 800 * 5
    assert compute.training_flops(10, adapters=False, checkpointing=False) == 30
    assert compute.training_flops(10, adapters=True, checkpointing=True) == 30
    device = compute.Device("x", flops=1e12, bandwidth=1e9 / compute.BANDWIDTH_SHARE)
    assert compute.decode_seconds(10, 3, 0.5e9, 0.5e9, device) == pytest.approx(30)


# roles and micro-batches


def plain_role(**changes: Any) -> RolePlan:
    model = Model((Part("language", 1000, 1000),), 800, SHAPE)
    batch = Batch(rows=6, prompts=6, answers=1, steps=1, logits=True, answer=4)
    given = {"train": TrainConfig(engine="torch"), "token_budget": 30} | changes
    return RolePlan("policy", model, batch, **given)


def test_rows_are_cut_as_they_are_in_a_run() -> None:
    sizes = cut(plain_role(), Lengths(prompt=6, answer=4, images=0), ranks=2)
    assert (sizes.count, sizes.tokens) == (1, 30), "three rows of ten tokens on each rank"
    assert (sizes.largest, sizes.answers, sizes.images) == (30, 12, 3)
    one = cut(plain_role(token_budget=1), Lengths(6, 4, 0), ranks=1)
    assert (one.count, one.largest) == (6, 10), "a row longer than the budget is alone"


def test_a_larger_micro_batch_and_the_measured_norm_take_more() -> None:
    lengths = Lengths(6, 4, 0)
    small, large = (
        role_memory(plain_role(token_budget=budget), lengths, 1, "float32") for budget in (10, 30)
    )
    assert large.activations == 3 * small.activations
    assert large.logits == 3 * small.logits
    assert large.held == small.held
    normed = role_memory(plain_role(ptx_norm=True), lengths, 1, "float32")
    assert normed.transient - large.transient == 4 * 1000


def test_every_stage_has_the_roles_it_asks_for() -> None:
    config = recipe("comparison")
    for name, stage in config.stages.items():
        roles = {each.role: each for each in stage_roles(config, name, 16)}
        if stage.kind == "safe_rlhf":
            assert set(roles) == {
                "rollout", "policy", "reference", "reward", "cost", "reward_critic", "cost_critic"
            }  # fmt: skip
            trained = {role for role, each in roles.items() if each.train is not None}
            assert trained == {"policy", "reward_critic", "cost_critic"}
        if stage.kind in ("sft", "dpo"):
            assert roles["policy"].train == stage.train
        if stage.kind in ("reward", "cost", "guard"):
            assert roles[stage.kind].model.trained > 0


# recipes and verdicts


@pytest.mark.parametrize(("name", "gpu"), [(n, 80) for n in EIGHT] + [(n, 24) for n in ONE])
def test_a_papers_recipe_fits(name: str, gpu: int) -> None:
    config = recipe(name)
    gpus = sum(group.gpus * group.ranks for group in config.groups.values())
    assert gpus == pytest.approx(8 if gpu == 80 else 1)
    host = {80: 1000, 24: 192 if "rlhf" in name else 64}[gpu] * GB
    devices = Devices(gpu * GB, host)
    for stage in config.stages:
        fits = [fit(each, devices) for each in stage_memory(config, stage, default_lengths(config))]
        assert all(each.fits for each in fits), (
            stage,
            [(e.need / GB, e.capacity / GB) for e in fits],
        )
        assert node_need(fits)[1] <= host


def test_what_does_not_fit_says_which_key_saves_how_much() -> None:
    config = recipe("safe_rlhf_v_qwen2vl_7b", "stages.ppo.train.gradient_checkpointing=false",
                    "stages.ppo.frozen=whole", "groups.train.ranks=2")  # fmt: skip
    lengths, devices = default_lengths(config), Devices(80 * GB)
    processes = {each.group: each for each in stage_memory(config, "ppo", lengths)}
    found = fit(processes["train"], devices)
    assert not found.fits
    assert found.missing == pytest.approx(found.need - 80 * GB)
    given = {each.change: each for each in advice(config, "ppo", lengths, found, devices)}
    assert {"stages.ppo.frozen=sharded", "groups.train.ranks=4",
            "stages.ppo.train.gradient_checkpointing=true"} <= set(given)  # fmt: skip
    sharded = copy.deepcopy(config)
    sharded.stages["ppo"].frozen = "sharded"
    again = {each.group: each for each in stage_memory(sharded, "ppo", lengths)}
    saved = found.need - fit(again["train"], devices).need
    assert given["stages.ppo.frozen=sharded"].saves == pytest.approx(saved)
    assert saved > 16 * GB, "half of three models of 16.6 GB"


def adapted(*changes: str) -> RunConfig:
    """The paper's recipe with adapters on one frozen model, which nothing shards."""
    lora = "{lora_rank: 8, zero_stage: 1, freeze: [], offload: none}"
    keys = ("reward.train", "cost.train", "ppo.train", "ppo.critic_train")
    given = [f"stages.{key}={lora}" for key in keys]
    bases = ["stages.reward.init=sft", "stages.cost.init=sft", "stages.ppo.policy=sft"]
    return recipe(EIGHT[0], *given, *bases, "stages.ppo.frozen=whole", *changes)


def test_roles_with_adapters_of_one_model_hold_it_once() -> None:
    def resident(config: RunConfig) -> float:
        processes = stage_memory(config, "ppo", default_lengths(config))
        return next(each.resident for each in processes if each.group == "train")

    base = describe(configuration("Qwen/Qwen2-VL-7B-Instruct"), scorer=False, train=None)
    one = base.total * 2  # bfloat16
    assert one < resident(adapted()) <= 1.1 * one
    # a scorer that is not an adapter of the policy's start, and its critic
    for change in ("stages.reward.train.lora_rank=0", "stages.cost.init=Qwen/Qwen2-VL-7B-Instruct"):
        assert resident(adapted(change)) > 2.8 * one, change  # without lm_head


def test_an_engine_whose_share_is_too_small_is_named() -> None:
    config = recipe("dream_qwen25vl_7b", "engine.gpu_memory_utilization=0.2")
    processes = {e.group: e for e in stage_memory(config, "rlaif", default_lengths(config))}
    found = fit(processes["rollout"], Devices(80 * GB))
    assert not found.fits
    assert "no single sequence" in found.why


def test_the_time_of_an_iteration_falls_with_a_faster_device_and_more_ranks() -> None:
    def seconds(device: str, *overrides: str) -> float:
        config = recipe("safe_rlhf_v_qwen2vl_7b", *overrides)
        lengths = default_lengths(config)
        chosen = compute.DEVICES[device]
        return compute.stage_iteration(config, "ppo", lengths, chosen).seconds

    assert seconds("h100") < seconds("a100") < seconds("a100", "groups.train.ranks=4")
    measured = compute.measured_cpu("float32", size=64)
    assert measured.flops > 0 < measured.bandwidth

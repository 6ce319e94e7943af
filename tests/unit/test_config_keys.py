"""Every key of every class: a doc, a range for each number, and a checker that keeps to it."""

import dataclasses
import math
import operator
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from omegaconf import MISSING

import rlsys
from rlsys.config import engine, judging, lagrange, schema, updates
from rlsys.config.artifact_kinds import ARTIFACT_KINDS
from rlsys.config.check import check
from rlsys.config.docs import DOCS, kind_table, markdown
from rlsys.config.keys import KeyInfo, describe, key, key_infos
from rlsys.config.load import load_config
from rlsys.config.schema import OptimConfig, RunConfig
from rlsys.errors import ConfigError
from rlsys.stages.registry import STAGES
from rlsys.stages.safe_rlhf import SafeRlhfStage

DEMO = Path(rlsys.__file__).parents[1] / "configs" / "demo.yaml"
NUMBERS: dict[Any, Callable[[float], Any]] = {
    int: lambda number: number,
    float: lambda number: number,
    list[float]: lambda number: [number, 0.5],
    dict[str, int]: lambda number: {"train": number},
}
"""Types that hold numbers -> such a value."""
INSIDE = {list[float]: "[0]", dict[str, int]: ".train"}
MEETS: dict[str, Callable[[float, float], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "multiple_of": lambda value, of: value % of == 0,
}
OPTIM = {"optim": {"lr": 1.0}}
ASKS = {"judge": "judge"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A recipe with every kind of stage."""
    folder = tmp_path_factory.mktemp("recipe")
    recipe = yaml.safe_load(DEMO.read_text())
    recipe["groups"]["judge"] = {"roles": ["judge"]}
    recipe["groups"]["train"]["roles"].append("guard")
    recipe["stages"] |= {
        "dpo": {"kind": "dpo", "init": "start", "steps": 1, **OPTIM},
        "grpo": {"kind": "grpo", "policy": "start", "reward": "reward", "iterations": 1, **OPTIM},
        "guard": {"kind": "guard", "init": "start", "steps": 1, **OPTIM},
        "filter": {"kind": "filter", "guard": "guard"},
        "guarded": {"kind": "guarded", "policy": "start", "guard": "guard"},
        "judge": {"kind": "judge", "model": "start"},
        "observe": {"kind": "observe", **ASKS},
        "rlaif": {"kind": "rlaif", "policy": "start", **ASKS, **OPTIM},
        "conditioned": {"kind": "disentangled", "policy": "start", **ASKS},
        "siuo": {
            "kind": "benchmark",
            "benchmark": "siuo",
            "folder": "siuo",
            "max_new_tokens": 16,
            "policies": {"start": "start"},
            **ASKS,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return load_config(folder / "recipe.yaml")


def classes() -> list[Any]:
    """Those that several stages share, those of the stages, and all that are inside them."""
    found = dict.fromkeys(
        value
        for module in (schema, engine, lagrange, updates, judging)
        for value in vars(module).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
    )
    found |= dict.fromkeys(kind.config for kind in STAGES.values())
    waiting = list(found)
    while waiting:
        for kind in get_type_hints(waiting.pop()).values():
            for part in (kind, *get_args(kind)):
                if dataclasses.is_dataclass(part) and part not in found:
                    found[part] = None
                    waiting.append(part)
    return list(found)


def holders(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dataclass of a recipe, with what stands before its keys."""
    if dataclasses.is_dataclass(node):
        yield path, node
        node = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    if isinstance(node, dict):
        for name, value in node.items():
            yield from holders(value, f"{path}{name}.")


def around(info: KeyInfo, kind: Any) -> list[float]:
    """Numbers below, at and above each bound; what no range allows of a float."""
    if kind in (int, dict[str, int]):
        return [int(bound) + step for _, bound in info.bounds for step in (-1, 0, 1)]
    found = [math.nan, math.inf, -math.inf]
    for _, bound in info.bounds:
        found += [math.nextafter(bound, -math.inf), bound, math.nextafter(bound, math.inf)]
    return found


def said(config: RunConfig, owner: Any, name: str, value: Any) -> str:
    """What the checker says about a recipe with this value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        check(config)
    except ConfigError as error:
        return str(error)
    finally:
        setattr(owner, name, before)
    return ""


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_key_has_a_doc_and_every_number_a_range(cls: type) -> None:
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        info = field.metadata.get("key")
        assert info is not None, f"{cls.__name__}.{field.name} is not written with key(...)"
        assert info.doc.endswith("."), f"{cls.__name__}.{field.name} has no doc"
        if types[field.name] in NUMBERS:
            assert info.bounds, f"{cls.__name__}.{field.name} has no range"


def test_numbers_are_kept_in_their_range(everything: RunConfig) -> None:
    seen = set()
    for path, owner in holders(everything):
        seen |= set(type(owner).__mro__)
        types = get_type_hints(type(owner))
        for field in dataclasses.fields(owner):
            kind, info = types[field.name], field.metadata["key"]
            if kind not in NUMBERS:
                continue
            assert said(everything, owner, field.name, getattr(owner, field.name)) == ""
            full = f"{path}{field.name}{INSIDE.get(kind, '')}"
            for number in around(info, kind):
                message = said(everything, owner, field.name, NUMBERS[kind](number))
                fits = math.isfinite(number) and all(
                    MEETS[name](number, bound) for name, bound in info.bounds
                )
                refusal = f"{full}: must be {info.range}, got {number}"
                assert (message == refusal) is not fits, (full, number, message)
    assert set(classes()) <= seen, "a class that no recipe holds"


def test_strings_are_among_their_choices(everything: RunConfig) -> None:
    count = 0
    for path, owner in holders(everything):
        for field in dataclasses.fields(owner):
            if field.metadata["key"].choices and field.name != "kind":
                value = getattr(owner, field.name)
                wrong = {
                    str: "nonsense",
                    list: ["nonsense"],
                    dict: {"minor": "nonsense"},
                }[type(value)]
                message = said(everything, owner, field.name, wrong)
                assert message.startswith(f"{path}{field.name}")
                assert ": must be one of " in message
                count += 1
    assert count > 20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.ppo.ppo.policy_clip=-0.2",
         "stages.ppo.ppo.policy_clip: must be > 0 and at most 1, got -0.2"),
        ("stages.ppo.ppo.gamma=1.01", "stages.ppo.ppo.gamma: must be at least 0 and at most 1"),
        ("stages.ppo.ppo.gae_lambda=-0.1", "stages.ppo.ppo.gae_lambda: must be at least 0"),
        ("stages.ppo.lagrange.target_unsafe_rate=1",
         "stages.ppo.lagrange.target_unsafe_rate: must be > 0 and < 1"),
        ("stages.ppo.lagrange.lr=-1", "stages.ppo.lagrange.lr: must be at least 0, got -1.0"),
        ("stages.ppo.optim.betas=[0.9,1.0]", "stages.ppo.optim.betas[1]: must be at least 0 and"),
        ("stages.ppo.optim.lr=.nan", "stages.ppo.optim.lr: must be > 0, got nan"),
        ("timeouts.call=.inf", "timeouts.call: must be > 0, got inf"),
        ("engine.extra={swap: [.inf]}", "engine.extra.swap[0]: must be a finite number, got inf"),
        ("stages.pretrain.tiny.hidden=100",
         "stages.pretrain.tiny.hidden: must be at least 32 and a multiple of 32, got 100"),
        ("data.sizes.train=0", "data.sizes.train: must be at least 20, got 0"),
        ("groups.train.gpus=1.5", "groups.train.gpus: above 1 must be a whole number, got 1.5"),
        ("stages.ppo.lagrange={constraint: unsafe_probability, threshold: 1}",
         "stages.ppo.lagrange.threshold: unsafe_probability is held to target_unsafe_rate"),
        ("stages.ppo.lagrange={rule: pid, kp: 0, ki: 0}", "stages.ppo.lagrange.ki: pid with"),
        ("stages.ppo.lagrange={rule: log_sgd, constraint: mean_cost, floor: 0}",
         "stages.ppo.lagrange.floor: log_sgd needs a floor"),
        ("groups.train.roles=[policy,actor]", "groups.train.roles[1]: must be one of rollout,"),
    ],
)  # fmt: skip
def test_the_loader_names_key_value_and_range(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        load_config(DEMO, [override])


def test_a_default_that_can_change_is_not_shared() -> None:
    first, second = OptimConfig(), OptimConfig()
    first.betas.append(0.5)
    assert second.betas == [0.9, 0.95]
    assert SafeRlhfStage().ppo is not SafeRlhfStage().ppo


def test_a_key_keeps_what_it_may_name() -> None:
    @dataclasses.dataclass
    class Some:
        model: str = key("", "A policy.", ref="policy")

    assert dataclasses.fields(Some)[0].metadata["key"].ref == "policy"


def test_keys_and_stages_name_kinds_of_artefacts_that_there_are() -> None:
    named = {info.ref for cls in classes() for info in key_infos(cls).values()} - {""}
    made = {kind.makes for kind in STAGES.values()} - {None}
    assert named <= made == set(ARTIFACT_KINDS)


def test_keys_are_described_with_their_sections() -> None:
    rows = {row.key: row for row in describe(RunConfig)}
    assert rows["name"].default == "required"
    assert rows["seed"].type == "int"
    assert rows["dtype"].range == "one of float32, bfloat16"
    assert rows["groups.NAME.roles"].default == "required"
    assert rows["engine.gpu_memory_utilization"].range == "> 0 and at most 1"
    judge = {row.key: row for row in describe(STAGES["judge"].config)}
    assert judge["engine.max_model_len"].default == "4096"
    sft = {row.key: row for row in describe(STAGES["sft"].config)}
    assert sft["optim.betas"].default == "[0.9, 0.95]"
    assert all(row.doc and row.default and MISSING not in row.default for row in rows.values())


def test_the_documentation_is_what_the_code_says() -> None:
    assert DOCS.read_text(encoding="utf-8") == markdown(), "run python -m rlsys.config.docs"


def test_the_documentation_has_every_key_of_every_kind() -> None:
    text = markdown()
    for cls in classes():
        for field in dataclasses.fields(cls):
            assert re.search(rf"`([\w.]+\.)?{field.name}[`.]", text), f"{cls.__name__}.{field.name}"
    assert [kind for kind in STAGES if not re.search(rf"^### .*\b{kind}\b", text, re.M)] == []


def printed(*arguments: str) -> str:
    """By ``rlsys config``, without Ray."""
    code = (
        "import sys; from actors.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert 'ray' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "config", *arguments]
    wide = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(DEMO.parents[1])}
    return subprocess.run(command, env=wide, check=True, capture_output=True, text=True).stdout


def test_the_command_prints_all_keys_or_those_of_a_kind() -> None:
    everything = printed()
    assert "engine.gpu_memory_utilization" in everything
    assert "disentangled" in everything
    one = printed("safe_rlhf")
    assert "lagrange.threshold" in one
    assert "critic_optim.lr" in one
    assert "gpu_memory_utilization" not in one
    with pytest.raises(ConfigError, match="'trpo' is no kind of stage; there are sft, dpo"):
        kind_table("trpo")


# Where a range ends, not as the keys say it.
ENDS: list[tuple[type, str, list[float], list[float]]] = [
    (lagrange.LagrangeConfig, "target_unsafe_rate", [0.001, 0.999], [0.0, 1.0]),
    (lagrange.LagrangeConfig, "ema", [0.0, 0.999], [-0.001, 1.0]),
    (schema.RunConfig, "seed", [0, 2**32 - 1], [-1, 2**32]),
    (updates.PpoConfig, "gamma", [0.0, 1.0], [-0.001, 1.001]),
    (updates.PpoConfig, "gae_lambda", [0.0, 1.0], [-0.001, 1.001]),
    (updates.PpoConfig, "policy_clip", [0.001, 1.0], [0.0, 1.001]),
    (updates.PpoConfig, "temperature", [0.001, 2.0], [0.0, 2.001]),
    (updates.PpoConfig, "kl_beta", [0.0, 9.0], [-0.001]),
    (updates.PpoConfig, "value_clip", [0.001], [0.0]),
    (updates.PpoConfig, "score_clip", [0.001], [0.0]),
]


@pytest.mark.parametrize(("owner", "name", "inside", "outside"), ENDS)
def test_a_range_ends_where_the_method_does(
    owner: type, name: str, inside: list[float], outside: list[float]
) -> None:
    info = key_infos(owner)[name]
    for number in inside:
        info.check(name, number)
    for number in outside:
        with pytest.raises(ConfigError, match=name):
            info.check(name, number)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"floor": 1.0, "init": 1.0, "cap": 1.0}, ""),
        ({"floor": 0.9}, "cap: need floor"),
        ({"cap": 0.7}, "cap: need floor"),
        ({"rule": "fixed", "init": 1000.0}, ""),
        ({"rule": "log_sgd"}, ""),
        ({"rule": "log_sgd", "floor": 0.0}, "floor: log_sgd"),
        ({"rule": "projected", "floor": 0.0}, ""),
        ({"rule": "pid", "kp": 0.0}, ""),
        ({"rule": "pid", "ki": 0.0}, ""),
        ({"rule": "pid", "kp": 0.0, "ki": 0.0, "kd": 1.0}, "ki: pid"),
        ({"threshold": "-1.5"}, ""),
        ({"threshold": "inf"}, "threshold: 'inf'"),
        ({"threshold": "nan"}, "threshold: 'nan'"),
        ({"threshold": "1", "constraint": "unsafe_probability"}, "threshold: unsafe_probability"),
        ({"constraint": "unsafe_probability"}, ""),
    ],
)
def test_keys_of_the_multiplier_fit_together(changes: dict[str, Any], said: str) -> None:
    config = dataclasses.replace(lagrange.LagrangeConfig(), **changes)
    if not said:
        config.check()
        return
    with pytest.raises(ConfigError, match=said):
        config.check()


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({}, "unsafe_probability"),
        ({"threshold": "-1.5"}, "mean_cost"),
        ({"constraint": "mean_cost"}, "mean_cost"),
        ({"constraint": "unsafe_probability"}, "unsafe_probability"),
    ],
)
def test_a_threshold_that_is_a_number_is_one_of_costs(changes: dict[str, Any], form: str) -> None:
    assert dataclasses.replace(lagrange.LagrangeConfig(), **changes).form == form

"""Recipes: what loads, what does not, and what it says."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from omegaconf import Container

import rlsys
from rlsys.config.engine import EngineConfig
from rlsys.config.engine_arguments import REFUSED, check_arguments
from rlsys.config.judging import EndpointConfig
from rlsys.config.keys import result_settings
from rlsys.config.load import dump_config, load_config, to_plain
from rlsys.config.references import references
from rlsys.config.schema import RunConfig
from rlsys.data.prepare import Datasets
from rlsys.engines.vllm import engine_settings
from rlsys.errors import ConfigError
from rlsys.models.load import HEAD_FILE
from rlsys.roles.registry import ROLES
from rlsys.stages.evaluate import EvaluateStage
from rlsys.stages.judge import JudgeStage
from rlsys.stages.registry import STAGES
from rlsys.stages.rlaif import RlaifStage
from rlsys.stages.safe_rlhf import SafeRlhfStage
from rlsys.stages.sft import SftStage
from tests.unit.test_config_keys import classes

ROOT = Path(rlsys.__file__).parents[1]
RECIPES = sorted(
    path
    for folder in ("configs", "examples")
    for pattern in ("*.yaml", "*.yml")
    for path in (ROOT / folder).rglob(pattern)
)
DEMO = ROOT / "configs" / "demo.yaml"


def load_plain(tmp_path: Path, recipe: Any) -> RunConfig:
    """Load a recipe given as plain containers."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return load_config(path)


@pytest.fixture
def demo() -> dict[str, Any]:
    return dict(yaml.safe_load(DEMO.read_text()))


# what loads


def test_there_are_recipes() -> None:
    assert DEMO in RECIPES


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what examples/smollm2/prepare.py makes, as far as a check reads it."""
    model = tmp_path / "runs/smollm2-data/model"
    model.mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 64}
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads(path: Path) -> None:
    config = load_config(path)
    assert config.stages
    for stage in config.stages.values():
        assert type(stage) is STAGES[stage.kind].config


def values(node: Any) -> Iterator[Any]:
    yield node
    if dataclasses.is_dataclass(node):
        node = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from values(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from values(value)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_omegaconf_object_leaves_the_loader(path: Path) -> None:
    overrides = ["engine.extra={attention_config: {b: [1, {c: 2}]}}"]
    config = load_config(path, overrides)
    assert config.engine.extra == {"attention_config": {"b": [1, {"c": 2}]}}
    found = list(values(config))
    assert len(found) > 100
    assert not [value for value in found if isinstance(value, Container)]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_dumped_recipe_loads_to_an_equal_one(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["seed=41", "engine.extra={attention_config: {b: null}}"])
    dump_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert to_plain(again) == to_plain(config)


def test_overrides_win_and_keep_their_type() -> None:
    lagrange = ["constraint=mean_cost", "threshold=-0.25"]
    config = load_config(
        DEMO,
        [
            "stages.ppo.iterations=5",
            *(f"stages.ppo.lagrange.{each}" for each in lagrange),
            "seed=9",
        ],
    )
    assert config.seed == 9
    assert isinstance(config.stages["ppo"], SafeRlhfStage)
    assert config.stages["ppo"].iterations == 5
    assert config.stages["ppo"].lagrange.threshold == "-0.25"
    assert load_config(DEMO).seed == 0


def test_stages_keep_their_order() -> None:
    written = list(yaml.safe_load(DEMO.read_text())["stages"])
    assert list(load_config(DEMO).stages) == written


def test_arguments_of_vllm_that_rlsys_leaves_alone_may_be_given() -> None:
    given = {"tensor_parallel_size": 2, "enable_prefix_caching": False, "quantization": "fp8"}
    overrides = [f"engine.extra.{name}={value}" for name, value in given.items()]
    assert load_config(DEMO, overrides).engine.extra == given


def test_what_rlsys_sets_of_vllm_cannot_be_given_twice() -> None:
    for name in ("tokenizer", "revision", "hf_overrides", "mm_processor_kwargs"):
        with pytest.raises(ConfigError, match=rf"^extra\.{name}: cannot be set here: the "):
            check_arguments([name])
    config = EngineConfig()
    for cpu in (False, True):
        own = engine_settings("folder", config, "float32", cpu=cpu, images=1)
        for name in own:
            with pytest.raises(ConfigError, match=rf"^engine\.extra\.{name}: cannot be set here"):
                check_arguments([name], own, "engine.extra")
        assert own.keys() - REFUSED.keys() <= {"enforce_eager"}, "known only where the engine is"


def test_configs_share_no_state() -> None:
    first, second = load_config(DEMO), load_config(DEMO)
    first.engine.extra["x"] = 1
    first.stages["ppo"].optim.betas.append(0.5)
    assert second == load_config(DEMO)


def test_references_name_what_a_stage_reads() -> None:
    config = load_config(DEMO)
    assert references(config.stages["pretrain"]) == {}
    assert references(config.stages["start"]) == {"init": "pretrain"}
    assert references(config.stages["cost"]) == {"init": "start"}
    assert references(config.stages["ppo"]) == {
        "policy": "start", "reward": "reward", "cost": "cost",
    }  # fmt: skip
    judged = EvaluateStage(policies={"a": "ppo"}, cost="cost")
    assert references(judged) == {"policies.a": "ppo", "cost": "cost"}
    assert references(SftStage(init="elsewhere", steps=1)) == {"init": "elsewhere"}


def model_folder(folder: Path) -> str:
    """What a check sees of a model with a head."""
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (folder / HEAD_FILE).touch()
    return str(folder)


def test_a_folder_may_stand_for_a_stage(tmp_path: Path) -> None:
    model = model_folder(tmp_path)
    config = load_config(DEMO, [f"stages.reward.init={model}", f"stages.ppo.cost={model}"])
    assert config.stages["reward"].init == model


def test_what_trains_names_parts_of_its_model(tmp_path: Path) -> None:
    """Of the model made from scratch, of one on disk, and of a scorer's head."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen3", "num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 64}'
    )
    config = load_config(
        DEMO,
        [
            "stages.ppo.train={freeze: [], lora_rank: 2}",
            "stages.cost.train.freeze=[vision, projector, head]",
            f"stages.reward={{init: {tmp_path}, train: {{freeze: [embed_tokens]}}}}",
            "stages.ppo.critic_train.freeze=[]",
        ],
    )  # fmt: skip
    assert config.stages["cost"].train.freeze[0] == "vision"
    said = r"stages\.reward\.train\.freeze: no parameter has a component named 'vision'"
    with pytest.raises(ConfigError, match=said):
        load_config(DEMO, [f"stages.reward.init={tmp_path}", "stages.reward.train.freeze=[vision]"])


@pytest.mark.parametrize(("key", "file"), [("reward.init", "config.json"), ("ppo.cost", HEAD_FILE)])
def test_a_folder_without_a_model_is_named(key: str, file: str, tmp_path: Path) -> None:
    (Path(model_folder(tmp_path)) / file).unlink()
    with pytest.raises(ConfigError, match=rf"stages\.{key}: .* {file} is missing there"):
        load_config(DEMO, [f"stages.{key}={tmp_path}"])


# what does not load, and what it says

BAD_OVERRIDES = [
    # unknown keys
    ("seeds=1", "seeds"),
    ("engine.seed=1", "seed"),
    ("engine.dtype=bfloat16", "engine.dtype"),
    ("stages.ppo.train.dtype=bfloat16", "train.dtype"),
    ("stages.ppo.lagrange.rate=1", "rate"),
    ("stages.ppo.optim.momentum=0.9", "momentum"),
    ("groups.train.nodes=2", "nodes"),
    ("lagrange.lr=1", "lagrange"),
    # wrong types
    ("seed=one", "seed"),
    ("stages.ppo.iterations=many", "iterations"),
    ("stages.ppo.iterations=null", "iterations"),
    ("stages.ppo.optim.lr=fast", "lr"),
    ("data.sizes.train=ten", "data.sizes.train"),
    ("groups.train.roles=policy", "groups.train.roles"),
    ("groups=3", "groups"),
    ("seed=${nope}", "seed"),
    # values out of range
    ("dtype=float16", "dtype: must be one of float32, bfloat16"),
    ("engine.transport=tcp", "engine.transport"),
    ("tracker.wandb=maybe", "tracker.wandb"),
    ("groups.train.ranks=0", "groups.train.ranks"),
    ("timeouts.call=-1", "timeouts.call"),
    ("stages.ppo.iterations=0", "stages.ppo.iterations"),
    ("stages.start.steps=0", "stages.start.steps"),
    ("stages.ppo.critic_optim.lr=0", "stages.ppo.critic_optim.lr"),
    ("engine.chunk_prompts=0", "engine.chunk_prompts"),
    ("stages.start.target=longest", "stages.start.target"),
    ("stages.start.optim.schedule=linear", "stages.start.optim.schedule"),
    ("stages.start.train.engine=jax", "train.engine"),
    ("stages.start.train.zero_stage=4", "train.zero_stage"),
    ("stages.cost.label_mode=soft", "label_mode"),
    ("stages.ppo.ppo.kl_split=none", "ppo.kl_split"),
    ("stages.ppo.ppo.loss_form=sum", "ppo.loss_form"),
    ("stages.ppo.ppo.samples_per_prompt=0", "ppo.samples_per_prompt"),
    ("stages.ppo.ppo.temperature=0", "ppo.temperature"),
    ("stages.ppo.lagrange.rule=newton", "lagrange.rule"),
    ("stages.ppo.lagrange.constraint=median", "lagrange.constraint"),
    ("stages.ppo.lagrange.kp=-1", "lagrange.kp"),
    ("stages.ppo.lagrange.ki=-1", "lagrange.ki"),
    ("stages.ppo.lagrange.kd=-1", "lagrange.kd"),
    ("stages.ppo.lagrange.ema=1", "lagrange.ema"),
    ("stages.ppo.lagrange.kd_delay=0", "lagrange.kd_delay"),
    ("stages.ppo.lagrange.window=0", "lagrange.window"),
    ("stages.ppo.lagrange.floor=2", "lagrange"),
    ("stages.ppo.lagrange.threshold=low", "lagrange.threshold"),
    ("stages.ppo.kind=trpo", "stages.ppo.kind"),
    ("stages.extra.steps=3", "stages.extra.kind"),
    ("stages.ppo=3", "stages.ppo.kind"),
    # arguments of vLLM that rlsys sets, and those that nobody has
    ("engine.extra.dtype=float16", "engine.extra.dtype: cannot be set here: set the recipe's"),
    ("engine.extra.trust_remote_code=true", "engine.extra.trust_remote_code: cannot be set here"),
    ("engine.extra.tensor_paralel_size=2",
     "engine.extra.tensor_paralel_size: vLLM's EngineArgs have no such argument"),
    # names that match no part of a model
    ("stages.ppo.train={freeze: [], lora_rank: 2, lora_targets: [q_proj, query]}",
     "stages.ppo.train.lora_targets: no module of the language model has the name 'query'"),
    ("stages.ppo.critic_train={freeze: [], lora_rank: 2, lora_targets: [lm_head]}",
     "stages.ppo.critic_train.lora_targets: no module"),
    ("stages.cost.train.freeze=[vision, tower]",
     "stages.cost.train.freeze: no parameter has a component named 'tower'"),
    ("stages.pretrain.train.freeze=[head]",
     "stages.pretrain.train.freeze: no parameter has a component named 'head'"),
    # names that become paths and dotted keys
    ("stages={a/b: {kind: sft, steps: 1, optim: {lr: 1}}}", "stages: the name 'a/b' must be"),
    ("groups={-a: {roles: [guard]}}", "groups: the name '-a' must be letters, digits"),
    ("name=../x", "name: the name '../x' must be letters, digits"),
    # across sections
    ("engine.max_model_len=100", "engine.max_model_len"),
    ("stages.ppo.ppo.max_new_tokens=64", "engine.max_model_len"),
    ("stages.evaluation.max_new_tokens=64", "engine.max_model_len"),
    ("stages.ppo.critic_train.lora_rank=-1", "stages.ppo.critic_train.lora_rank"),
    ("stages.cost.target=safer", "stages.cost.target: a cost model ranks by safety"),
    ("stages.reward.target=kinder", "stages.reward.target"),
    ("stages.ppo.ppo.ptx_coef=0.1", "stages.ppo.ppo.ptx_split: name a split"),
    ("stages.ppo.policy=evaluation", "stages.ppo.policy"),
    ("stages.reward.init=cost", "stages.reward.init"),
    ("stages.start.init=start", "stages.start.init"),
    ("stages.evaluation.policies.other=nowhere", "stages.evaluation.policies.other"),
    ("stages.evaluation.cost=nowhere", "stages.evaluation.cost"),
    ("groups.rollout.roles=[rollout,reward]", "groups.rollout.roles"),
    ("groups.train.roles=[policy,reference,reward,cost,reward_critic]", "cost_critic"),
    ("groups.train.roles=[policy,policy]", "groups.train.roles"),
    ("groups.train.roles=[actor]", "groups.train.roles"),
    # overrides that are none
    ("seed", "seed"),
    ("seed=[1", "not YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "key"), BAD_OVERRIDES, ids=[o for o, _ in BAD_OVERRIDES])
def test_a_bad_value_is_one_error_naming_its_key(override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        load_config(DEMO, [override])


GUARDED = {"kind": "guarded", "policy": "start", "guard": "guard"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"actions": {"grave": "pass"}}, "stages.guarded.actions"),
        ({"actions": {"minor": "pass", "moderate": "ask", "severe": "refuse"}}, "actions.moderate"),
        ({"threshold": 1.0}, "stages.guarded.threshold"),
        ({"rounds": -1}, "stages.guarded.rounds"),
        ({"candidates": 0}, "stages.guarded.candidates"),
        ({"guard": "start"}, "stages.guarded.guard"),
        ({"max_new_tokens": 99}, "engine.max_model_len"),
    ],
)
def test_a_bad_value_of_a_guarded_policy_is_named(
    changes: dict[str, Any], key: str, demo: dict[str, Any], tmp_path: Path
) -> None:
    demo["groups"]["train"]["roles"].append("guard")
    demo["stages"]["guard"] = {"kind": "guard", "init": "start", "steps": 1, "optim": {"lr": 1.0}}
    demo["stages"]["guarded"] = dict(GUARDED)
    assert load_plain(tmp_path, demo).stages["guarded"].rounds == 5
    demo["stages"]["guarded"] |= changes
    with pytest.raises(ConfigError, match=re.escape(key)):
        load_plain(tmp_path, demo)


def test_a_filter_judges_the_split_it_is_used_on(demo: dict[str, Any], tmp_path: Path) -> None:
    demo["groups"]["train"]["roles"].append("guard")
    demo["stages"] |= {
        "guard": {"kind": "guard", "init": "start", "steps": 1, "optim": {"lr": 1.0}},
        "clean": {"kind": "filter", "guard": "guard"},
        "again": {
            "kind": "sft",
            "init": "start",
            "filter": "clean",
            "steps": 1,
            "optim": {"lr": 1},
        },
    }
    assert load_plain(tmp_path, demo).stages["again"].filter == "clean"
    demo["stages"]["clean"]["split"] = "pretrain"
    with pytest.raises(ConfigError, match=r"stages\.again\.filter: 'clean' judges .*'pretrain'"):
        load_plain(tmp_path, demo)
    demo["stages"]["clean"]["split"] = ""
    with pytest.raises(ConfigError, match=r"stages\.clean\.split: name a split"):
        load_plain(tmp_path, demo)


# stages that ask a judge

ENDPOINT: dict[str, Any] = {"url": "http://here/v1", "model": "m"}
FEEDBACK: dict[str, dict[str, Any]] = {
    "judge": {"kind": "judge", "model": "start"},
    "teacher": {"kind": "observe", "judge": "judge"},
    "distilled": {"kind": "sft", "split": "", "conversations": "teacher", "steps": 1},
    "rlaif": {"kind": "rlaif", "policy": "distilled", "judge": "judge"},
    "conditioned": {"kind": "disentangled", "policy": "rlaif", "judge": "judge"},
    "final": {"kind": "evaluate", "policies": {"last": "rlaif", "second": "rlaif/round-2"}},
}
ASKING = ("teacher", "rlaif", "conditioned")


@pytest.fixture
def dream(demo: dict[str, Any]) -> dict[str, Any]:
    """The demo, then a judge and all that ask it."""
    demo["groups"]["judge"] = {"roles": ["judge"]}
    demo["stages"] |= {name: dict(stage) for name, stage in FEEDBACK.items()}
    for name in ("distilled", "rlaif"):
        demo["stages"][name]["optim"] = {"lr": 1.0}
    return demo


def refused(tmp_path: Path, recipe: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as found:
        load_plain(tmp_path, recipe)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_stages_that_ask_a_judge_load(dream: dict[str, Any], tmp_path: Path) -> None:
    config = load_plain(tmp_path, dream)
    assert isinstance(config.stages["rlaif"], RlaifStage)
    named = {name: references(config.stages[name]) for name in FEEDBACK}
    assert named == {
        "judge": {"model": "start"},
        "teacher": {"judge": "judge"},
        "distilled": {"conversations": "teacher"},
        "rlaif": {"policy": "distilled", "judge": "judge"},
        "conditioned": {"policy": "rlaif", "judge": "judge"},
        "final": {"policies.last": "rlaif", "policies.second": "rlaif/round-2"},
    }
    assert references(JudgeStage(endpoint=EndpointConfig(**ENDPOINT))) == {}
    dream["stages"]["rlaif"] |= {"cost": "cost", "cost_weight": 0.5}
    assert references(load_plain(tmp_path, dream).stages["rlaif"])["cost"] == "cost"
    conversations = tmp_path / "conversations.json"
    conversations.touch()
    dream["stages"]["distilled"] |= {"split": "train", "conversations": str(conversations)}
    assert load_plain(tmp_path, dream).stages["distilled"].conversations == str(conversations)


BAD_FEEDBACK = [
    # the judge
    ("judge", {"model": ""}, "stages.judge.model: name either a model or an endpoint.url"),
    ("judge", {"endpoint": ENDPOINT}, "stages.judge.model: name either a model or an endpoint.url"),
    (
        "judge",
        {"model": "", "endpoint": {"url": "http://here/v1"}},
        "stages.judge.endpoint.model: name the model to ask for",
    ),
    ("judge", {"model": "nowhere"}, "stages.judge.model: 'nowhere'"),
    ("judge", {"model": "reward"}, "stages.judge.model: 'reward' is a stage of kind reward"),
    ("judge", {"max_new_tokens": 0}, "stages.judge.max_new_tokens"),
    ("judge", {"max_new_tokens": 4096}, "stages.judge.max_new_tokens: 4096 leaves no room"),
    ("judge", {"max_prompts": -1}, "stages.judge.max_prompts"),
    ("judge", {"engine": {"dtype": "float16"}}, "stages.judge: engine.dtype: Key 'dtype' not in"),
    (
        "judge",
        {"model": "", "endpoint": ENDPOINT | {"max_concurrency": 0}},
        "judge.endpoint.max_concurrency",
    ),
    ("judge", {"model": "", "endpoint": ENDPOINT | {"timeout": 0}}, "judge.endpoint.timeout"),
    ("judge", {"model": "", "endpoint": ENDPOINT | {"key": "abc"}}, "stages.judge: endpoint.key"),
    # those that ask it
    ("teacher", {"max_prompts": -1}, "stages.teacher.max_prompts"),
    ("teacher", {"split": ""}, "stages.teacher.split: name a split"),
    (
        "rlaif",
        {"samples_per_prompt": 1},
        "stages.rlaif.samples_per_prompt: must be at least 2, got 1",
    ),
    ("rlaif", {"rounds": 0}, "stages.rlaif.rounds"),
    ("rlaif", {"temperature": 0.0}, "stages.rlaif.temperature"),
    ("rlaif", {"policy": "judge"}, "stages.rlaif.policy: 'judge' is a stage of kind judge"),
    ("rlaif", {"cost": "cost"}, "stages.rlaif.cost_weight: give both"),
    ("rlaif", {"cost_weight": 0.5}, "stages.rlaif.cost_weight: give both"),
    ("rlaif", {"cost": "reward", "cost_weight": 1.0}, "stages.rlaif.cost: 'reward' is a stage"),
    ("rlaif", {"guard": "reward"}, "stages.rlaif.guard: 'reward' is a stage of kind reward"),
    ("rlaif", {"guard_threshold": 1.0}, "stages.rlaif.guard_threshold"),
    ("rlaif", {"max_new_tokens": 99}, "data.max_prompt_tokens + stages.rlaif.max_new_tokens"),
    (
        "conditioned",
        {"max_new_tokens": 99},
        "data.max_prompt_tokens + stages.conditioned.max_new_tokens",
    ),
    (
        "conditioned",
        {"cost": "reward"},
        "stages.conditioned.cost: 'reward' is a stage of kind reward",
    ),
    ("rlaif", {"split": ""}, "stages.rlaif: '' names an empty split"),
    ("rlaif", {"split": "train+"}, "stages.rlaif: 'train+' names an empty split"),
    ("judge", {"split": ""}, "stages.judge: '' names an empty split"),
    (
        "final",
        {"split": "validation"},
        "stages.evaluation.split: 'evaluation', but stages.final answers 'validation'",
    ),
    # what they made
    (
        "distilled",
        {"conversations": ""},
        "stages.distilled.split: name a split, or give conversations",
    ),
    (
        "distilled",
        {"filter": "teacher"},
        "stages.distilled.filter: a filter stage flags rows of a split",
    ),
    (
        "distilled",
        {"conversations": "start"},
        "stages.distilled.conversations: 'start' is a stage of",
    ),
    ("distilled", {"conversations": "nowhere"}, "stages.distilled.conversations: 'nowhere'"),
    ("final", {"policies": {"r": "judge"}}, "stages.final.policies.r: 'judge' is a stage of kind"),
    (
        "final",
        {"policies": {"r": "rlaif/round-9"}},
        "stages.final.policies.r: 'rlaif' made no 'round-9'; it has round-1, round-2, round-3",
    ),
    (
        "final",
        {"policies": {"r": "distilled/round-1"}},
        "stages.final.policies.r: 'distilled' made no 'round-1'; it has no parts",
    ),
]


@pytest.mark.parametrize(("stage", "changes", "said"), BAD_FEEDBACK)
def test_a_bad_value_of_a_stage_with_a_judge_is_named(
    stage: str, changes: dict[str, Any], said: str, dream: dict[str, Any], tmp_path: Path
) -> None:
    dream["stages"][stage] |= changes
    assert said in refused(tmp_path, dream)


@pytest.mark.parametrize("stage", ASKING)
@pytest.mark.parametrize(
    ("named", "said"),
    [
        (str(ROOT), "is neither an earlier stage (cost, "),
        ("nobody", "'nobody' is neither an earlier stage (cost, "),
        ("start", "'start' is a stage of kind sft, a stage of kind judge is needed"),
        ("judge/round-1", "'judge' made no 'round-1'; it has no parts"),
    ],
    ids=["folder", "absent", "kind", "part"],
)
def test_a_judge_is_a_judge_stage_of_the_recipe(
    stage: str, named: str, said: str, dream: dict[str, Any], tmp_path: Path
) -> None:
    dream["stages"][stage]["judge"] = named
    message = refused(tmp_path, dream)
    assert message.startswith(f"stages.{stage}.judge: ")
    assert said in message


@pytest.mark.parametrize(
    ("stage", "key"),
    [("teacher", "judge"), ("rlaif", "judge"), ("rlaif", "policy"), ("rlaif", "optim"),
     ("conditioned", "judge"), ("conditioned", "policy")],
)  # fmt: skip
def test_a_missing_value_of_a_stage_with_a_judge_is_named(
    stage: str, key: str, dream: dict[str, Any], tmp_path: Path
) -> None:
    del dream["stages"][stage][key]
    assert re.search(rf"stages\.{stage}: .*{key}", refused(tmp_path, dream))


def test_a_judge_has_processes_only_where_its_model_is_here(
    dream: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    del dream["groups"]["judge"]
    assert refused(tmp_path, dream) == "groups: stage 'judge' (judge) needs the role 'judge'"
    dream["stages"]["judge"] |= {"model": "", "endpoint": ENDPOINT}
    assert isinstance(load_plain(tmp_path, dream).stages["judge"], JudgeStage)


def test_an_endpoint_without_its_key_is_named(
    dream: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEY_OF_TEST", raising=False)
    dream["stages"]["judge"] |= {
        "model": "",
        "endpoint": ENDPOINT | {"key_variable": "KEY_OF_TEST"},
    }
    stage = load_plain(tmp_path, dream).stages["judge"]  # a recipe is checked without the key
    with pytest.raises(ConfigError, match=r"stages\.judge\.endpoint\.key_variable: .* KEY_OF"):
        STAGES["judge"].check_data("judge", stage, cast(Datasets, None))


@pytest.mark.parametrize("role", ["rollout", "policy", "cost", "guard"])
def test_ai_feedback_needs_a_place_for_all_it_names(
    role: str, dream: dict[str, Any], tmp_path: Path
) -> None:
    model, stage = model_folder(tmp_path), dream["stages"]["rlaif"]
    stage["policy"] = model
    dream["stages"] = {"judge": {"kind": "judge", "model": model}, "rlaif": stage}
    groups = {name: {"roles": [name]} for name in ("rollout", "policy", "judge", "cost", "guard")}
    without = {name: group for name, group in groups.items() if name != role}
    if role in ("cost", "guard"):
        assert load_plain(tmp_path, dream | {"groups": without}), "not asked for, not needed"
    stage |= {"cost": model, "cost_weight": 0.5, "guard": model}
    assert load_plain(tmp_path, dream | {"groups": groups})
    said = refused(tmp_path, dream | {"groups": without})
    assert said == f"groups: stage 'rlaif' (rlaif) needs the role '{role}'"


@pytest.mark.parametrize("key", ["name", "groups", "stages"])
def test_a_missing_section_is_named(key: str, demo: dict[str, Any], tmp_path: Path) -> None:
    del demo[key]
    with pytest.raises(ConfigError, match=f"missing mandatory value: {key}"):
        load_plain(tmp_path, demo)


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("start", "steps"),
        ("start", "optim"),
        ("ppo", "iterations"),
        ("ppo", "policy"),
        ("ppo", "critic_optim"),
        ("evaluation", "policies"),
    ],
)
def test_a_missing_value_of_a_stage_is_named(
    stage: str, key: str, demo: dict[str, Any], tmp_path: Path
) -> None:
    del demo["stages"][stage][key]
    wanted = {"optim": "optim.lr", "critic_optim": "critic_optim.lr"}.get(key, key)
    with pytest.raises(ConfigError, match=rf"stages\.{stage}[:.].*{wanted}"):
        load_plain(tmp_path, demo)


def test_a_role_in_two_groups_names_both(demo: dict[str, Any], tmp_path: Path) -> None:
    demo["groups"]["more"] = {"roles": ["reward"]}
    with pytest.raises(ConfigError, match=r"groups\.more\.roles: 'reward' .* group 'train'"):
        load_plain(tmp_path, demo)


def test_bfloat16_needs_a_sharded_optimiser(demo: dict[str, Any], tmp_path: Path) -> None:
    demo["dtype"] = "bfloat16"
    load_plain(tmp_path, demo)
    demo["stages"]["ppo"]["critic_train"] = {"zero_stage": 0}
    said = refused(tmp_path, demo)
    assert said.startswith("stages.ppo.critic_train.zero_stage: 0 cannot train in bfloat16")
    demo["stages"]["ppo"]["critic_train"]["engine"] = "torch"
    load_plain(tmp_path, demo)


@pytest.mark.parametrize("engine", [role.name for role in ROLES.values() if role.exclusive])
def test_an_engine_shares_its_processes_with_nobody(
    engine: str, demo: dict[str, Any], tmp_path: Path
) -> None:
    demo["groups"] = {"all": {"roles": [engine, "policy"]}}
    with pytest.raises(ConfigError, match=rf"groups\.all\.roles: {engine} must be the only role"):
        load_plain(tmp_path, demo)


@pytest.mark.parametrize("role", [role for role in ROLES if role != "judge"])
def test_a_role_without_a_place_is_named(role: str, demo: dict[str, Any], tmp_path: Path) -> None:
    demo["stages"]["guard"] = {
        "kind": "guard", "init": "start", "steps": 1, "optim": {"lr": 1.0},
    }  # fmt: skip
    for group in demo["groups"].values():
        group["roles"] = [name for name in group["roles"] if name != role]
    demo["groups"] = {name: group for name, group in demo["groups"].items() if group["roles"]}
    with pytest.raises(ConfigError, match=rf"stage .* needs the role '{role}'"):
        load_plain(tmp_path, demo)


def test_a_stage_may_only_use_earlier_ones(demo: dict[str, Any], tmp_path: Path) -> None:
    stages = demo["stages"]
    demo["stages"] = {"ppo": stages.pop("ppo"), **stages}
    with pytest.raises(ConfigError, match=r"stages\.ppo\.policy: 'start' .*there is none"):
        load_plain(tmp_path, demo)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such recipe"):
        load_config(tmp_path / "none.yaml")


NO_RECIPES = {
    "unclosed": b"name: [demo",
    "empty": b"",
    "word": b"hello",
    "number": b"3",
    "list": b"- name: demo\n",
    "picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "nul": b"name: \x00",
    "utf-16": "name: demo".encode("utf-16"),
    "latin-1": "name: démo".encode("latin-1"),
    "twice": b"name: demo\nname: demo\n",
}


@pytest.mark.parametrize("data", NO_RECIPES.values(), ids=NO_RECIPES)
def test_a_file_that_is_no_recipe_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"recipe\.yaml: ") as found:
        load_config(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("", {"stages": {}}, "stages: name at least one stage"),
        ("", {"stages": ["sft"]}, "stages: a mapping is needed, got ['sft']"),
        ("", {"groups": {}}, "groups: name at least one group of processes"),
        ("", {"groups": []}, "groups: a mapping is needed, got []"),
        ("", {"data": None}, "data"),
        ("", {"engine": {"extra": ["a"]}}, "engine.extra: a mapping is needed, got ['a']"),
        ("", {"seed": {"a": 1}}, "seed"),
        ("groups.train", {"roles": []}, "groups.train.roles: name at least one role"),
        ("groups.train", {"roles": {"a": 1}}, "groups.train.roles: a list is needed, got {'a': 1}"),
        ("stages.evaluation", {"policies": ["start"]},
         "stages.evaluation.policies: a mapping is needed, got ['start']"),
        ("stages.evaluation", {"policies": {}}, "stages.evaluation.policies: name at least one"),
        ("stages.ppo", {"optim": 3}, "stages.ppo.optim: a mapping is needed, got 3"),
        ("stages.ppo.optim", {"betas": {"a": 1}}, "stages.ppo.optim.betas: a list is needed"),
        ("stages.ppo", {"kind": ["ppo"]}, "stages.ppo.kind: ['ppo'] is not one of"),
    ],
)  # fmt: skip
def test_a_section_of_the_wrong_form_is_named(
    section: str, changes: dict[str, Any], message: str, demo: dict[str, Any], tmp_path: Path
) -> None:
    place = demo
    for name in section.split(".") if section else []:
        place = place[name]
    place |= changes
    assert message in refused(tmp_path, demo)


def test_an_override_of_the_wrong_form_is_named() -> None:
    with pytest.raises(ConfigError, match=r"policies=\[start\]: the recipe has a list there"):
        load_config(DEMO, ["stages.evaluation.policies=[start]"])


def test_how_often_a_stage_is_saved_is_no_part_of_what_it_makes() -> None:
    usual = load_config(DEMO)
    changed = load_config(
        DEMO,
        [
            "stages.ppo.checkpoint_every=3", "stages.start.checkpoint_every=7",
            "stages.ppo.gap.warn=0.001", "engine.transport=ray",
        ],
    )  # fmt: skip
    for name, stage in usual.stages.items():
        assert result_settings(stage) == result_settings(changed.stages[name])
    assert result_settings(usual.engine) == result_settings(changed.engine)
    other = load_config(DEMO, ["stages.ppo.ppo.gamma=0.9"]).stages["ppo"]
    assert result_settings(other) != result_settings(usual.stages["ppo"])


# no key without an effect


def test_every_key_is_read_somewhere() -> None:
    """Outside of what a class says about its own keys."""
    files = [*(ROOT / "rlsys").rglob("*.py"), *(ROOT / "actors").rglob("*.py")]
    own = {
        ROOT / "rlsys" / "config" / f"{name}.py"
        for name in ("schema", "engine", "lagrange", "updates", "judging")
    }
    text = "\n".join(file.read_text() for file in files if file not in own)
    keys = [(cls.__name__, field.name) for cls in classes() for field in dataclasses.fields(cls)]
    assert len(keys) > 90
    unread = [
        f"{cls}.{name}"
        for cls, name in keys
        if not re.search(rf"(?<!\bself)\.{name}\b(?!\s*=[^=])", text) and f'"{name}"' not in text
    ]
    assert unread == []


BASE = """
stages:
  a: {kind: sft, init: tiny, split: train, steps: 3, batch: 7, optim: {lr: 0.1}}
  b: {kind: dpo, init: a, steps: 1, optim: {lr: 0.1}}
"""


def based(tmp_path: Path, text: str) -> RunConfig:
    head = "data: {source: riskworld}\ngroups: {train: {roles: [policy]}}\n"
    (tmp_path / "base.yaml").write_text(f"name: base\n{head}{BASE}")
    (tmp_path / "child.yaml").write_text(f"base: base.yaml\nname: child\n{text}")
    return load_config(tmp_path / "child.yaml")


def test_a_stage_without_kind_changes_keys_of_the_base(tmp_path: Path) -> None:
    config = based(tmp_path, "stages: {a: {steps: 5}}")
    assert config.name == "child"
    assert list(config.stages) == ["a", "b"]
    assert (config.stages["a"].steps, config.stages["a"].batch) == (5, 7)


def test_a_stage_with_kind_replaces_that_of_the_base_and_comes_last(tmp_path: Path) -> None:
    config = based(tmp_path, "stages: {c: {kind: dpo, init: a, steps: 2, optim: {lr: 0.1}}, "
                             "b: {kind: dpo, init: c, steps: 9, optim: {lr: 0.1}}}")  # fmt: skip
    assert list(config.stages) == ["a", "c", "b"]
    assert config.stages["b"].init == "c"


def test_a_stage_that_is_null_on_the_command_line_is_removed() -> None:
    config = load_config(DEMO, ["stages.evaluation=null", "stages.ppo=null"])
    assert list(config.stages) == ["pretrain", "start", "reward", "cost"]
    with pytest.raises(ConfigError, match=r"stages\.x=null: there is no such stage"):
        load_config(DEMO, ["stages.x=null"])


def test_a_stage_that_is_null_is_removed(tmp_path: Path) -> None:
    assert list(based(tmp_path, "stages: {b: null}").stages) == ["a"]
    with pytest.raises(ConfigError, match=r"stages\.x: null, but base\.yaml has no such stage"):
        based(tmp_path, "stages: {x: null}")


def test_the_base_of_a_recipe_may_be_given(tmp_path: Path) -> None:
    """So one recipe of tiny sizes serves several: what it changes is in each of them."""
    for name, seed in (("one", 1), ("two", 2)):
        recipe = yaml.safe_load(DEMO.read_text()) | {"name": name, "seed": seed}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    own = {"base": "one.yaml", "stages": {"ppo": {"iterations": 3}}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(own))
    first = load_config(tmp_path / "small.yaml")
    second = load_config(tmp_path / "small.yaml", ["base=two.yaml", "seed=5"])
    assert (first.name, first.seed, second.name, second.seed) == ("one", 1, "two", 5)
    assert first.stages["ppo"].iterations == second.stages["ppo"].iterations == 3
    with pytest.raises(ConfigError, match=r"base: 'three\.yaml': no such recipe"):
        load_config(tmp_path / "small.yaml", ["base=three.yaml"])


PAPERS = ("safe_rlhf_v_qwen2vl_7b", "safe_rlhf_v_llava_v16_7b", "dream_llava_7b",
          "dream_qwen25vl_7b")  # fmt: skip


@pytest.mark.parametrize("paper", PAPERS)
def test_a_papers_recipe_has_a_tiny_form(paper: str) -> None:
    """The same stages with the same settings, apart from lengths, numbers and sizes."""
    small = ROOT / "configs" / f"tiny_{'dream' if 'dream' in paper else 'safe_rlhf_v'}.yaml"
    whole = load_config(ROOT / "configs" / f"{paper}.yaml")
    tiny = load_config(small, [f"base={paper}.yaml"])
    assert list(tiny.stages) == list(whole.stages)
    assert not any(group.gpus for group in tiny.groups.values())
    for name, stage in whole.stages.items():
        assert getattr(tiny.stages[name], "train", None) == getattr(stage, "train", None)
        assert getattr(tiny.stages[name], "lagrange", None) == getattr(stage, "lagrange", None)


def test_a_base_that_is_missing_or_leads_back_is_named(tmp_path: Path) -> None:
    for name in ("child", "other"):
        (tmp_path / f"{name}.yaml").write_text("base: gone.yaml")
    with pytest.raises(ConfigError, match=r"'gone\.yaml': no such recipe"):
        load_config(tmp_path / "child.yaml")
    (tmp_path / "child.yaml").write_text("base: other.yaml")
    (tmp_path / "other.yaml").write_text("base: child.yaml")
    with pytest.raises(ConfigError, match="circle"):
        load_config(tmp_path / "child.yaml")
    (tmp_path / "other.yaml").write_text("base: [child.yaml]")
    with pytest.raises(ConfigError, match="base"):
        load_config(tmp_path / "other.yaml")


def test_a_recipe_that_does_not_fit_its_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"child\.yaml"):
        based(tmp_path, "stages: [1]")
    with pytest.raises(ConfigError, match=r"child\.yaml"):
        based(tmp_path, "stages: {a: 3}")

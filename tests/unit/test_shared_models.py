"""With adapters, six roles hold one frozen trunk in memory and compute what six copies would."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsys.batch import PolicyBatch, ValueBatch
from rlsys.config.schema import OptimConfig, TrainConfig
from rlsys.config.updates import PpoConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import PreferencePair, Prompt, Rows
from rlsys.engines.transports.registry import TRANSPORTS
from rlsys.errors import ModelError
from rlsys.models.adapters import adapter_base, add_lora, add_saved_adapter
from rlsys.models.load import load_trunk
from rlsys.models.shared import Base, SharedModels
from rlsys.roles.critic import CriticSpec
from rlsys.roles.factory import WorkerFactory
from rlsys.roles.policy import PolicySpec
from rlsys.roles.reference import ReferenceSpec
from rlsys.roles.scorer import ScorerLoss, ScorerSpec, ScorerTrainerSpec
from rlsys.roles.trained import Training
from rlsys.runtime.process_group import Rank
from tests.fakes import make_rollouts

ROWS = [0, 1, 2, 3]
LORA = TrainConfig(engine="torch", lora_rank=2, lora_targets=["q_proj", "v_proj", "up_proj"])
TRAINING = Training(LORA, OptimConfig(lr=1e-2, warmup_steps=0), total_steps=9, seed=3)
PPO = PpoConfig(max_new_tokens=4, minibatch=4, epochs=1)


@dataclass(frozen=True)
class Source:
    """Rows that are there already."""

    records: Any
    max_prompt_tokens: int = 128

    def load(self) -> Rows[Prompt]:
        return self.records

    def __hash__(self) -> int:
        return id(self.records)


@pytest.fixture(scope="module")
def data(records: Rows[PreferencePair]) -> Source:
    return Source(records)


def factory() -> WorkerFactory:
    return WorkerFactory(Rank(), TRANSPORTS, "tests", cpu=True)


@pytest.fixture(scope="module")
def scorers(tiny: str, data: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Reward and cost model, trained as adapters of the policy."""
    folders = {}
    for signal in ("reward", "cost"):
        worker = ScorerTrainerSpec(tiny, data, "float32", TRAINING, "start").build(factory())
        for _ in range(3):
            worker.step(ROWS, ScorerLoss(signal, regularization=0.0))
        folder = tmp_path_factory.mktemp(signal)
        worker.save_model(folder)
        folders[signal] = str(folder)
    return folders


def six_roles(
    tiny: str, data: Source, scorers: dict[str, str], base: Base | None, process: WorkerFactory
) -> dict[str, Any]:
    """Workers of a PPO-Lagrangian stage in one process."""
    reward, cost = scorers["reward"], scorers["cost"]
    specs: dict[str, Any] = {
        "policy": PolicySpec(tiny, data, "float32", TRAINING),
        "reference": ReferenceSpec(tiny, data, "float32", 100_000),
        "reward": ScorerSpec(reward, data, "float32", 100_000, base=base),
        "cost": ScorerSpec(cost, data, "float32", 100_000, base=base),
        "reward_critic": CriticSpec(reward, data, "float32", TRAINING, base),
        "cost_critic": CriticSpec(cost, data, "float32", TRAINING, base),
    }
    return {role: spec.build(process) for role, spec in specs.items()}


def iteration(workers: dict[str, Any], encoder: PromptEncoder, seed: int) -> list[Tensor]:
    """All that the roles compute in one, in the order of the driver."""
    prompts = [prompt.expanded for prompt in encoder.prompts(ROWS)]
    drawn = make_rollouts([(row, 0) for row in ROWS])
    rollouts = replace(drawn, prompt_ids=prompts, response_ids=drawn.response_ids + 100)
    policy, reference = workers["policy"], workers["reference"]
    old, base = policy.logprobs(rollouts)[1], reference.logprobs(rollouts)[1]
    scores = [workers[role].score(rollouts)[1] for role in ("reward", "cost")]
    values = [workers[role].values(rollouts)[1] for role in ("reward_critic", "cost_critic")]
    generator = torch.Generator().manual_seed(seed)
    batch = PolicyBatch(rollouts, old, torch.randn(old.shape, generator=generator), seed)
    told = [policy.update(batch, PPO)]
    for role, value in zip(("reward_critic", "cost_critic"), values, strict=True):
        goals = torch.randn(value.shape, generator=generator)
        told.append(workers[role].update(ValueBatch(rollouts, value, goals, seed), PPO))
    losses = [torch.tensor(stats.shares["loss"]) for stats in told]
    return [old, base, *scores, *values, *losses]


def storages(modules: Sequence[torch.nn.Module]) -> int:
    """Bytes of their parameters, each once."""
    sizes = {p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}
    return sum(sizes.values())


def test_six_roles_on_one_trunk_compute_what_six_copies_do(
    tiny: str, data: Source, scorers: dict[str, str], encoder: PromptEncoder
) -> None:
    shared = six_roles(tiny, data, scorers, Base(tiny, "start"), factory())
    apart = {
        role: worker
        for role in shared
        for worker in [six_roles(tiny, data, scorers, None, factory())[role]]
    }
    for seed in range(2):
        found, expected = iteration(shared, encoder, seed), iteration(apart, encoder, seed)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-4  # the policy moved, its reference did not
    assert (found[2] - found[3]).abs().max() > 1e-3  # two scorers
    one_trunk = storages([load_trunk(tiny, "float32")])
    adapters = sum(  # of a model this small they are no small part
        p.nbytes for w in shared.values() for n, p in w.module.named_parameters() if "lora_" in n
    )
    held = storages([worker.module for worker in shared.values()])
    assert held - adapters <= 1.01 * one_trunk
    assert storages([worker.module for worker in apart.values()]) > 4 * one_trunk


def test_training_moves_a_role_alone(
    tiny: str, data: Source, scorers: dict[str, str], encoder: PromptEncoder
) -> None:
    workers = six_roles(tiny, data, scorers, Base(tiny, "start"), factory())
    before = {r: {n: p.clone() for n, p in w.module.named_parameters()} for r, w in workers.items()}
    iteration(workers, encoder, 0)
    iteration(workers, encoder, 1)
    for role, worker in workers.items():
        moved = {
            name
            for name, parameter in worker.module.named_parameters()
            if not torch.equal(parameter, before[role][name])
        }
        if role in ("reference", "reward", "cost"):
            assert not moved
        else:
            trained = {n for n, p in worker.module.named_parameters() if p.requires_grad}
            assert moved == trained
            assert all(".default." in name or name == "head.weight" for name in moved)


def test_a_scorer_of_another_base_keeps_its_own_weights(
    tiny: str, data: Source, scorers: dict[str, str]
) -> None:
    process = factory()
    reference = ReferenceSpec(tiny, data, "float32", 100_000).build(process)
    for base in (Base(tiny, "another start"), None):
        spec = ScorerSpec(scorers["reward"], data, "float32", 100_000, base=base)
        own = spec.build(process).module
        assert not any("lora_" in name for name, _ in own.named_parameters())
        assert storages([own, reference.module]) == storages([own]) + storages([reference.module])
    full = replace(TRAINING, train=TrainConfig(engine="torch"))
    critic = CriticSpec(scorers["reward"], data, "float32", full, Base(tiny, "start"))
    assert all(p.requires_grad for p in critic.build(process).module.parameters())


def test_weights_are_freed_with_the_last_role(tiny: str) -> None:
    models = SharedModels("cpu")
    first, second = models.model(tiny, "float32"), models.trunk(tiny, "float32")
    assert storages([first, second]) == storages([first])
    assert not any(p.requires_grad for p in first.parameters())
    del first
    gc.collect()
    assert len(models._models) == 1
    del second
    gc.collect()
    assert len(models._models) == 0


def test_a_saved_adapter_is_pefts(tiny: str, scorers: dict[str, str]) -> None:
    """PEFT puts it on the base model and gets the merged weights."""
    from peft import PeftModel

    folder = scorers["reward"]
    assert adapter_base(folder) == "start"
    assert adapter_base(tiny) is None
    adapted = PeftModel.from_pretrained(load_trunk(tiny, "float32"), f"{folder}/adapter")
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name, parameter in load_trunk(folder, "float32").named_parameters():
        torch.testing.assert_close(merged[name], parameter, rtol=0.0, atol=1e-6)


def test_an_adapter_of_other_layers_is_refused(tiny: str, scorers: dict[str, str]) -> None:
    trunk = load_trunk(tiny, "float32")
    trunk.language_model.layers = trunk.language_model.layers[:1]
    with pytest.raises(ModelError, match="an adapter of other layers"):
        add_saved_adapter(trunk, scorers["reward"])


def test_a_second_adapter_adds_to_the_first(tiny: str, scorers: dict[str, str]) -> None:
    trunk = load_trunk(tiny, "float32")
    add_saved_adapter(trunk, scorers["reward"])
    add_lora(trunk, TrainConfig(lora_rank=3, lora_targets=["q_proj", "k_proj"]), seed=0)
    for name, parameter in trunk.named_parameters():
        assert parameter.requires_grad == (".default." in name)
    layer = trunk.language_model.layers[0].self_attn
    x = torch.randn(2, layer.q_proj.in_features)
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        expected = projection.base_layer(x)
        for name, a in projection.lora_A.items():
            torch.nn.init.normal_(projection.lora_B[name].weight)
            expected = expected + projection.scaling[name] * projection.lora_B[name](a(x))
        torch.testing.assert_close(projection(x), expected)
    assert sorted(layer.q_proj.lora_A) == ["default", "saved"]


def test_a_checkpoint_of_training_holds_what_trains(
    tiny: str, data: Source, tmp_path: Path
) -> None:
    worker = PolicySpec(tiny, data, "float32", TRAINING).build(factory())
    worker.save_state(tmp_path, "policy")
    size = sum(file.stat().st_size for file in (tmp_path / "policy").iterdir())
    trained = sum(p.nbytes for p in worker.module.parameters() if p.requires_grad)
    assert size < 3 * trained + 50_000
    state = torch.load(tmp_path / "policy" / "state.pt", weights_only=True)
    name = next(iter(state["module"]))
    lost = {key: value for key, value in state["module"].items() if key != name}
    for module, problem in ((lost, f"lacks {name}"), (state["module"] | {"x": lost}, "has x")):
        torch.save(state | {"module": module}, tmp_path / "policy" / "state.pt")
        with pytest.raises(ModelError, match=problem):
            worker.load_state(tmp_path, "policy")

"""benchmarks/gpu.py, with a tiny model on the CPU."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rlsys.plan.model import describe


def script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gpu = script()
SIZE = gpu.Size(prompts=2, samples=3, visual=16, answer=5, tokens=4096, repeats=1)


def test_it_says_of_both_forms_what_scoring_update_and_publication_take() -> None:
    given = ["--tiny", "--device", "cpu"]
    for name in gpu.Size.__dataclass_fields__:
        given += [f"--{name}", str(getattr(SIZE, name))]
    rows = gpu.main(given)
    assert [(row[0], row[1]) for row in rows[:4]] == [
        (what, form) for form in ("plain", "shared prompts") for what in ("score", "update")
    ]
    assert rows[4][0] == "publish"
    assert all(float(row[2]) > 0 for row in rows)


def test_both_forms_compute_the_same() -> None:
    bench = gpu.Bench(SIZE, tiny=True, device="cpu")
    seen: list[int] = []
    layer = bench.worker.module.vlm.base_model.language_model.layers[0]
    layer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:2].numel()))
    shared = bench.score()
    with gpu.plain_form(bench.worker):
        plain = bench.score()
    assert torch.allclose(shared, plain, atol=1e-5)
    assert seen[0] < 0.6 * seen[1]
    assert seen[1] == bench.tokens


def test_the_large_model_has_the_published_size() -> None:
    config = gpu.three_billion(dict.fromkeys(gpu.SPECIAL_TOKENS, 7))
    model = describe(config, scorer=False, train=None)
    assert model.total == 3_754_622_976  # Qwen2.5-VL-3B-Instruct, the head tied
    assert model.count("vision") + model.count("projector") == pytest.approx(0.669e9, rel=0.01)

"""Which stage made a policy, by the recipe of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsys.report.build import build_report
from rlsys.report.load import load_run
from rlsys.report.recipe import read_recipe


def test_a_recipe_tells_which_stage_made_a_policy() -> None:
    recipe = read_recipe(
        {
            "data": {"sizes": {"train": 20, "odd": "many"}},
            "stages": {
                "start": {"kind": "sft"},
                "ai": {"kind": "rlaif", "policy": "start"},
                "guarded": {"kind": "guarded", "policy": "start"},
                "looks": {"kind": "disentangled"},
                "evaluation": {
                    "kind": "evaluate",
                    "policies": {"s": "start", "one": "ai/round-1", "end": "ai", "x": "/m/round-1"},
                },
            },
        },
        self_evaluated=("guarded", "disentangled"),
    )
    kinds = {"s": "sft", "one": "rlaif", "end": "rlaif", "x": None, "unheard of": None}
    kinds |= {"guarded": "guarded", "guarded + refusal": "guarded"}
    kinds |= {"looks": "disentangled", "looks + refusal": "disentangled"}
    assert {policy: recipe.kind(policy) for policy in kinds} == kinds
    assert recipe.rounds("ai", last=3) == {0: "s", 1: "one", 3: "end"}
    assert recipe.sizes == {"train": 20}


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"stages": None},
        {"stages": ["sft"]},
        {"stages": {"sft": None}},
        {"stages": {"evaluation": {"kind": "evaluate"}}},
        {"stages": {"evaluation": {"kind": "evaluate", "policies": ["p"]}}},
        {"stages": {"sft": {"kind": 3}, "e": {"policies": {"p": "sft", 1: None}}}},
    ],
)
def test_a_recipe_that_lacks_parts_makes_no_claim(tmp_path: Path, tree: dict[str, Any]) -> None:
    recipe = read_recipe(tree, self_evaluated=())
    assert recipe.kind("p") is None
    assert recipe.rounds("sft", 1) in ({}, {1: "p"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree | {"name": "odd"}))
    (tmp_path / "evaluation.json").write_text(json.dumps({name: {} for name in "pqrst"}))
    assert load_run(tmp_path).recipe == recipe
    build_report(tmp_path)

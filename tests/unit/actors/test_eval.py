"""``rlsys eval``: the recipe it makes, and options that do not fit."""

from pathlib import Path

import pytest

from actors.commands.evaluation import MOST_TOKENS, eval_recipe
from rlsys.config.load import config_of
from rlsys.errors import ConfigError


def test_eval_makes_a_recipe(tiny: str, tmp_path: Path) -> None:
    made = eval_recipe(tiny, "beavertails_v", tmp_path, tiny, "", tiny)
    config = config_of("eval", made, ["stages.beavertails_v.max_prompts=5", "dtype=bfloat16"])
    stage = config.stages["beavertails_v"]
    assert (stage.max_prompts, stage.baseline, config.dtype) == (5, "baseline", "bfloat16")
    assert list(stage.policies) == ["baseline", "policy"]
    assert config.stages["judge"].model == tiny
    assert config.engine.max_model_len <= MOST_TOKENS
    url = "http://127.0.0.1:8000/v1"
    asked = config_of("eval", eval_recipe(tiny, "siuo", tmp_path, url, "name", ""))
    assert asked.stages["judge"].endpoint.url == url
    assert list(asked.groups) == ["rollout"]
    plain = config_of("eval", eval_recipe(tiny, "figstep", tmp_path, "", "", ""))
    assert list(plain.stages) == ["figstep"]


@pytest.mark.parametrize(
    ("benchmark", "judge", "model", "message"),
    [
        ("x", "", "", "--benchmark: must be one of siuo, .* got 'x'"),
        ("siuo", "http://127.0.0.1/v1", "", "--judge-model goes with a URL"),
        ("siuo", "folder", "name", "--judge-model goes with a URL"),
        ("siuo", "nowhere", "", r"nowhere: no model there: config\.json is missing"),
    ],
)
def test_eval_says_what_does_not_fit(
    benchmark: str, judge: str, model: str, message: str, tiny: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        eval_recipe(tiny, benchmark, tmp_path, judge, model, "")

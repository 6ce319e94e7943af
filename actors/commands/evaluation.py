"""eval: a published benchmark on one policy, without a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.ending import end_in_order
from actors.local import engine_environment, run_local
from rlsys.errors import ConfigError

app = typer.Typer()

MOST_TOKENS = 4096  # of a prompt with its answer, where the model has a longer context


@app.command("eval")
def evaluate(
    policy: Annotated[str, typer.Argument(help="A policy: its folder, or a model on the hub.")],
    benchmark: Annotated[str, typer.Option(help="siuo, figstep, ...: docs/benchmarks.md.")],
    data: Annotated[Path, typer.Option(help="Folder of the benchmark's data as published.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, dotted: stages.siuo.max_prompts=50")
    ] = None,
    judge: Annotated[
        str,
        typer.Option(help="Folder or hub name of a judge, or a URL ending in /v1."),
    ] = "",
    judge_model: Annotated[str, typer.Option(help="With a URL: the model to ask for.")] = "",
    baseline: Annotated[
        str, typer.Option(help="Another policy, which the judge compares with.")
    ] = "",
) -> None:
    """Rates of a policy on a published benchmark, in this process; the table, all answers and
    grades are kept in the run's directory.
    """
    engine_environment()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from rlsys.config.load import config_of

    recipe = eval_recipe(policy, benchmark, data, judge, judge_model, baseline)
    config = config_of("eval", recipe, overrides or [])
    end_in_order()
    run_local(config)


def eval_recipe(
    policy: str, benchmark: str, data: Path, judge: str, judge_model: str, baseline: str
) -> dict[str, Any]:
    """The recipe of one benchmark stage. Raises: ConfigError for an unknown benchmark or options
    that do not go together.
    """
    from rlsys.evaluation.benchmarks.registry import BENCHMARKS

    if benchmark not in BENCHMARKS:
        raise ConfigError(f"--benchmark: must be one of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    url = judge if judge.startswith(("http://", "https://")) else ""
    if bool(url) != bool(judge_model):
        raise ConfigError("--judge-model goes with a URL as --judge, and is needed there")
    stage: dict[str, Any] = {
        "kind": "benchmark",
        "benchmark": benchmark,
        "folder": str(data),
        "policies": ({"baseline": baseline} if baseline else {}) | {"policy": policy},
        "baseline": "baseline" if baseline else "",
    }
    stages = {benchmark: stage}
    groups = {"rollout": {"roles": ["rollout"]}}
    length = context_length([policy, *([baseline] if baseline else [])])
    if judge:
        stage["judge"] = "judge"
        asked: dict[str, Any] = {"endpoint": {"url": url, "model": judge_model}}
        if not url:
            groups["judge"] = {"roles": ["judge"]}
            asked = {"model": judge, "engine": {"max_model_len": context_length([judge])}}
        stages = {"judge": {"kind": "judge", "max_new_tokens": min(1024, length // 4)} | asked,
                  **stages}  # fmt: skip
    stage["max_new_tokens"] = min(256, length // 4)
    return {
        "name": f"eval-{benchmark}",
        "data": {"source": str(data), "max_prompt_tokens": length - stage["max_new_tokens"]},
        "groups": groups,
        "engine": {"max_model_len": length},
        "tracker": {"wandb": "disabled"},
        "stages": stages,
    }


def context_length(models: Sequence[str]) -> int:
    """The shortest context of these models, at most ``MOST_TOKENS``. Raises: ConfigError for a
    folder without a model.
    """
    from rlsys.models.hub import model_config

    lengths = [MOST_TOKENS]
    for model in models:
        path = model_config(model)
        if not path.is_file():
            raise ConfigError(f"{model}: no model there: {path.name} is missing")
        config = json.loads(path.read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        lengths += [text["max_position_embeddings"]] if "max_position_embeddings" in text else []
    return min(lengths)

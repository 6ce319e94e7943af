"""Runs a recipe and writes down the token ids of every iteration that a stage reports.

python -m benchmarks.recorded ray|in-process OUT RECIPE [key=value ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rlsys.engines.environment import CPU_ENVIRONMENT, ENVIRONMENT


def record(out: Path) -> None:
    """Every batch of rollouts goes to ``out`` when it has been gathered."""
    import torch

    from rlsys.drivers import grpo_lagrangian, safe_rlhf

    batches: list[dict[str, Any]] = []
    for driver in (safe_rlhf, grpo_lagrangian):
        sample_and_score = driver.sample_and_score

        def recorded(
            *args: Any, sample_and_score: Any = sample_and_score, name: str = driver.__name__
        ) -> Any:
            rollouts, scores = sample_and_score(*args)
            batches.append(
                {
                    "driver": name,
                    "version": rollouts.version,
                    "ids": rollouts.response_ids,
                    "lengths": rollouts.lengths,
                }
            )
            torch.save(batches, out)
            return rollouts, scores

        driver.sample_and_score = recorded  # type: ignore[attr-defined]


def main() -> None:
    where, out, recipe, *overrides = sys.argv[1:]
    if where == "in-process":
        os.environ.update(ENVIRONMENT | CPU_ENVIRONMENT)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from rlsys.config.load import load_config
    from rlsys.display import Display
    from rlsys.runtime.local import open_local
    from rlsys.stages.recipe import run_recipe

    record(Path(out))
    config = load_config(recipe, overrides)
    if where == "in-process":
        run_recipe(config, Display(), open_local)
    else:
        from actors.cluster import open_cluster

        run_recipe(config, Display(), open_cluster)


if __name__ == "__main__":
    main()

"""Where numbers go: metrics.jsonl in the run directory, and wandb."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """Append-only. A number that is not finite is refused by name: it never means what it says."""

    def __init__(self, run_dir: Path, *, wandb_mode: str, project: str, name: str) -> None:
        self._file = (run_dir / "metrics.jsonl").open("a", buffering=1)
        self._wandb: Any = None
        if wandb_mode != "disabled":
            import wandb

            self._wandb = wandb.init(
                project=project,
                name=name,
                mode=wandb_mode,
                dir=str(run_dir),
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )

    def log(self, stage: str, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """One row. Raises: ValueError naming the metric that is not a finite number."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"stage {stage!r}, step {step}: metric {name!r} is {value}")
        row = {"stage": stage, "kind": kind, "step": step, "time": time.time(), **metrics}
        self._file.write(json.dumps(row) + "\n")
        if self._wandb is not None:
            self._wandb.log(
                {f"{stage}/{k}": v for k, v in metrics.items()} | {f"{stage}/step": step}
            )

    def close(self) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()

"""Logs metrics to metrics.jsonl in the run directory, and to wandb."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = tuple[str, int, dict[str, float]]
"""Kind of the stage, step, metrics."""


class MetricsLog:
    """One row per stage and step. A metric that is not finite is an error."""

    def __init__(self, run_dir: Path, *, wandb_mode: str, project: str, name: str) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._file = self._path.open("a", buffering=1)
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

    def restart(self, stage: str, rows: Sequence[Row]) -> None:
        """Replace a stage's rows in the file by ``rows``; a resumed stage repeats no step."""
        self._file.close()
        lines = self._path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a killed writer may cut its last
        partial = self._path.with_name(".metrics.partial")
        partial.write_text("".join(line for line in whole if json.loads(line)["stage"] != stage))
        os.replace(partial, self._path)
        self._file = self._path.open("a", buffering=1)
        for kind, step, metrics in rows:
            self.log(stage, kind, step, metrics)

    def close(self) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()

"""Checkpoints that a stopped training stage resumes from: every trained role and the driver's
state, written atomically.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from rlsys.artifacts import PROGRESS
from rlsys.checkpoint import read_checkpoint, save_checkpoint, saved_checkpoints, saved_state
from rlsys.errors import ConfigError, DataError
from rlsys.roles.trained import TrainedHandle
from rlsys.runtime.group import Runtime
from rlsys.stages.context import Context


class StageCheckpoints:
    """Checkpoints of one stage in ``folder/progress``.

    Args: roles: the trained roles by name; keep: number of newest checkpoints to keep.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        folder: Path,
        roles: Mapping[str, TrainedHandle[Any]],
        *,
        keep: int = 2,
    ) -> None:
        self.context, self.name, self.folder = context, name, folder
        self.root = _root(folder)
        self.roles, self.keep = roles, keep

    def restore(self) -> dict[str, Any] | None:
        """Load the newest complete checkpoint into the roles, and restore its metric rows.

        Returns: the driver's state, None without a checkpoint. A torn checkpoint is reported and
        the one before it is used.
        """
        for saved in reversed(saved_checkpoints(self.root)):
            try:
                state = read_checkpoint(saved)
            except DataError as error:
                self.context.display.message(
                    f"    [yellow]warning[/yellow] {saved.name} is torn ({escape(str(error))}); "
                    "going on from the one before"
                )
                continue
            limit = self.context.config.timeouts.start
            for pending in [role.load_state(saved) for role in self.roles.values()]:
                pending.result(limit)
            rows = [(kind, step, metrics) for kind, step, metrics in state["rows"]]
            self.context.restart_rows(self.name, rows)
            self.context.display.message(f"    resumed after step {state['step']}")
            return dict(state["driver"])
        return None

    def save(self, step: int, driver: Mapping[str, Any]) -> None:
        """Write one checkpoint: the roles, ``driver`` (JSON), and the metric rows so far."""
        limit = self.context.config.timeouts.call

        def save_roles(folder: Path) -> None:
            for role in self.roles.values():
                role.save_state(folder).result(limit)

        ranks = {name: role.group.size for name, role in self.roles.items()}
        state = {"step": step, "driver": driver, "ranks": ranks, "rows": self.context.rows}
        save_checkpoint(self.root, step, state, save_roles, self.keep)


def check_ranks(runtime: Runtime, folder: Path) -> None:
    """Before a stage builds its models. Raises: ConfigError if a checkpoint in ``folder`` is of
    another number of ranks.
    """
    for saved in saved_checkpoints(_root(folder)):
        for role, ranks in saved_state(saved).get("ranks", {}).items():
            if ranks != (size := runtime.group(role).size):
                raise ConfigError(
                    f"groups: {saved} was saved by {ranks} ranks of the role {role!r}, this run "
                    f"has {size}; run with as many, or delete {folder} to start the stage again"
                )


def _root(folder: Path) -> Path:
    return folder / PROGRESS / "checkpoints"

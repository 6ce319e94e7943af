"""Which checkpoints of stopped stages a run may still go on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlsys.artifacts import Recipe
from rlsys.config.keys import result_settings
from rlsys.config.load import load_config
from rlsys.config.references import references
from rlsys.errors import RlsysError
from rlsys.run_state import CONFIG, is_resumable, run_dirs


def needed_by_runs(runs: Path) -> Callable[[Recipe], bool]:
    """Whether a run in this folder is live, or would be continued by its command, and has the stage
    or one with the same keys; a run that cannot be read needs all that it began.
    """
    owners, settings = set[str](), set[str]()
    for folder in filter(is_resumable, run_dirs(runs)):
        owners.add(str(folder))
        try:
            stages = load_config(folder / CONFIG).stages
        except RlsysError:
            continue
        settings |= {_settings(stage.kind, stage_settings(stage)) for stage in stages.values()}

    def needed(recipe: Recipe) -> bool:
        return recipe.owner in owners or _settings(recipe.kind, recipe.config) in settings

    return needed


def stage_settings(stage: Any) -> dict[str, Any]:
    """The keys of a stage that its artefact is made of; artefacts that it names are hashed by their
    content, not by name.
    """
    named = {key.partition(".")[0] for key in references(stage)}
    return {key: value for key, value in result_settings(stage).items() if key not in named}


def _settings(kind: str, config: Any) -> str:
    return json.dumps([kind, config], sort_keys=True)

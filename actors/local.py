"""Runs in this process, without Ray."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlsys.config.schema import RunConfig


def run_local(config: RunConfig, *, resume: bool = False, trace: bool = False) -> None:
    """Run a recipe in this process, offline unless its data or a model is on the hub. The
    environment of engines is set already.
    """
    from rlsys.config.references import hub_models
    from rlsys.data.worlds import WORLDS
    from rlsys.display import Display
    from rlsys.engines.environment import OFFLINE
    from rlsys.runtime.local import open_local
    from rlsys.stages.recipe import run_recipe

    source = config.data.source
    if (source in WORLDS or Path(source).is_dir()) and not hub_models(config):
        os.environ.update(OFFLINE)
    run_recipe(config, Display(), open_local, resume=resume, trace=trace)


def engine_environment() -> None:
    """Set the environment variables of engines; call it before their imports."""
    from rlsys.engines.environment import CPU_ENVIRONMENT, ENVIRONMENT

    os.environ.update(ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR"})
    deprecated = r"`torch\.distributed\.reduce_op` is deprecated"
    warnings.filterwarnings("ignore", deprecated, FutureWarning, r"vllm\.triton_utils")
    import torch

    gpu = torch.cuda.is_available()
    os.environ.update({"DS_ACCELERATOR": "cuda"} if gpu else CPU_ENVIRONMENT)

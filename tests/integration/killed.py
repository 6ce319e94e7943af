"""Runs a recipe in this process, and ends it by SIGKILL at a chosen call of a chosen function.

python -m tests.integration.killed MODULE:FUNCTION NUMBER RECIPE [key=value ...]
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from typing import Any

from rlsys.engines.environment import CPU_ENVIRONMENT, ENVIRONMENT

os.environ.update(ENVIRONMENT | CPU_ENVIRONMENT)

from rlsys.config.load import load_config
from rlsys.display import Display
from rlsys.runtime.local import open_local
from rlsys.stages.recipe import run_recipe


def kill_at(place: str, number: int) -> None:
    """The ``number``-th call of ``module:function`` or ``module:Class.method`` never returns."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    whole, calls = getattr(owner, name), 0

    @functools.wraps(whole)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    setattr(owner, name, counted)


def main() -> None:
    place, number, recipe, *overrides = sys.argv[1:]
    if place != "-":
        kill_at(place, int(number))
    run_recipe(load_config(recipe, overrides), Display(), open_local)


if __name__ == "__main__":
    main()

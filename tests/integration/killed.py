"""Runs a recipe in this process, and ends it by SIGKILL at a chosen call of a chosen function.

python -m tests.integration.killed MODULE:FUNCTION NUMBER RECIPE [key=value ...]
python -m tests.integration.killed serve

``serve`` imports the engines once and forks a process for each list of such arguments on standard
input (JSON, one per line, the path of an output file first); it answers with the exit status.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
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


def run(arguments: Sequence[str]) -> None:
    place, number, recipe, *overrides = arguments
    if place != "-":
        kill_at(place, int(number))
    run_recipe(load_config(recipe, overrides), Display(), open_local)


def serve() -> None:
    """The imports take half of a short run's time."""
    import deepspeed  # noqa: F401
    import transformers.models.qwen2_5_vl  # noqa: F401

    import rlsys.judging.endpoint  # noqa: F401

    for line in sys.stdin:
        output, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            with open(output, "w") as stream:
                os.dup2(stream.fileno(), sys.stdout.fileno())
                os.dup2(stream.fileno(), sys.stderr.fileno())
            return run(arguments)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else run(sys.argv[1:])

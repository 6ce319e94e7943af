"""A run's control actor: how many rollout workers it should have, and how it stands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlsys.errors import ConfigError
from rlsys.run_state import RUN

NAMESPACE = "rlsys"
ANSWER_SECONDS = 30.0
NAME_SECONDS = 20.0  # until the actor of a driver that ended has given its name back
GAUGES = {
    "reward": "rlsys_reward",
    "cost": "rlsys_cost",
    "lambda": "rlsys_lambda",
    "samples_per_s": "rlsys_samples_per_second",
    "rollout/workers": "rlsys_rollout_workers",
}


class Control:
    """Plain class; ``ray.remote`` is applied where it starts."""

    def __init__(self) -> None:
        self._ranks: int | None = None
        self._status: dict[str, Any] = {}

    def scale(self, ranks: int) -> dict[str, Any]:
        """Ask for so many rollout workers. Returns: the latest status."""
        self._ranks = ranks
        return self._status

    def exchange(self, status: dict[str, Any] | None) -> int | None:
        """Called by the driver: leave a status, if there is one. Returns: how many workers were
        requested, None if none were.
        """
        if status is not None:
            self._status = status
        return self._ranks

    def status(self) -> dict[str, Any]:
        return self._status


def gauges(run: str) -> Callable[[Mapping[str, float]], None]:
    """What sets the gauges of Ray's Prometheus exporter from metrics, each with the tag ``run``."""
    made = {key: Gauge(name, tag_keys=("run",)) for key, name in GAUGES.items()}

    def set_all(metrics: Mapping[str, float]) -> None:
        for key in made.keys() & metrics.keys():
            made[key].set(metrics[key], {"run": run})

    return set_all


def control_name(run_dir: Path) -> str:
    return f"rlsys-control-{run_dir.resolve().name}"


def ray_of(run: Path) -> str:
    """The address of a running run's Ray. Raises: ConfigError when it is not running on Ray."""
    description = json.loads((run / RUN).read_text()) if (run / RUN).exists() else {}
    if "finished" in description or not description.get("ray"):
        why = "is finished" if "finished" in description else "does not run on Ray"
        raise ConfigError(f"{run}: the run {why}")
    return str(description["ray"])


def start_control(run_dir: Path) -> Any:
    """The run's control actor, which ends with the driver.

    Raises: ConfigError when another run of this name is running on the same Ray.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "name": control_name(run_dir),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "scheduling_strategy": here,  # lost with no other node
    }
    deadline = time.monotonic() + NAME_SECONDS
    while True:
        try:
            return ray.remote(Control).options(**options).remote()
        except ValueError as error:  # the name is taken
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"name: a run {run_dir.name!r} is running on this Ray; give this one another"
                ) from error
        time.sleep(0.5)


def ask_scale(run_dir: Path, address: str, ranks: int) -> dict[str, Any]:
    """Ask a run on the Ray at ``address`` for so many rollout workers. Returns: its status.

    Raises: ConfigError when Ray or the run is not there.
    """
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise ConfigError(f"{run_dir.name}: its Ray at {address} is not there: {error}") from error
    try:
        control = ray.get_actor(control_name(run_dir))
        return dict(ray.get(control.scale.remote(ranks), timeout=ANSWER_SECONDS))
    except ValueError as error:
        raise ConfigError(f"{run_dir.name}: no run of this name is running there") from error
    finally:
        ray.shutdown()

"""Ray for one run, joined or private: resources are checked first and freed at the end."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import ray
import torch
from ray._private.worker import global_worker as ray_worker
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from actors import object_store
from actors.control import gauges, start_control
from actors.elastic import ElasticGroup
from actors.ending import kept_signals
from actors.gcs import ROLE, Gcs
from actors.group import Group
from actors.heartbeat import Heartbeat
from actors.private_ray import private_folder
from actors.remote import Launcher, RemoteProcess
from actors.status import scaled_to, write_status
from actors.supervisor import Supervisor
from rlsys.config.references import data_paths
from rlsys.config.schema import ClusterConfig, GroupConfig, RunConfig
from rlsys.engines.transports.registry import transport_between
from rlsys.errors import ClusterTooSmall, ConfigError, RlsysError, RoleTimeout
from rlsys.leftovers import shared_folder
from rlsys.roles.registry import ROLES
from rlsys.runtime.group import Runtime
from rlsys.stages.run_dir import CONFIG

LOOK_SECONDS = 2.0  # between two looks at a cluster that has not granted what was requested


@contextmanager
def open_cluster(config: RunConfig, run_dir: Path) -> Iterator[Runtime]:
    """Connect, check that the groups fit, start them; all are stopped at the end of the block."""
    with _ray(config.cluster) as private, ExitStack() as ends:
        check_resources(config.groups, ray.cluster_resources())
        token = uuid.uuid4().hex[:12]
        ends.callback(shutil.rmtree, shared_folder(token), ignore_errors=True)
        launcher = Launcher(run_dir / "logs", config.seed, token, private)
        gcs = _gcs(run_dir)
        placement = _Placement(config, launcher)
        ends.callback(_unless_lost, gcs, placement.remove)
        control = start_control(run_dir)
        ends.callback(_unless_lost, gcs, partial(ray.kill, control))
        supervisor = Supervisor(
            lambda status: control.exchange.remote(status).future(),
            partial(write_status, run_dir),
            gauges(run_dir.name),
        )
        fixed: list[Group] = []
        for name, chosen in config.groups.items():
            if any(ROLES[role].elastic for role in chosen.roles):
                supervisor.elastic.append(_elastic(name, config, placement, supervisor, run_dir))
                ends.callback(_unless_lost, gcs, supervisor.elastic[-1].close)
            else:
                ranks = [placement.start(name, rank) for rank in range(chosen.ranks)]
                fixed.append(Group(name, chosen, ranks))
                ends.callback(_unless_lost, gcs, fixed[-1].close)
        groups: list[Group | ElasticGroup] = [*fixed, *supervisor.elastic]
        scaled = scaled_to(run_dir)  # before the supervisor writes a status of its own
        ends.enter_context(supervisor.running())
        supervisor.watch(ROLE, [Heartbeat(gcs, config.timeouts.heartbeat, time.monotonic())])
        _start(fixed, supervisor, config, run_dir, gcs)
        if scaled is not None:
            supervisor.scale(scaled)
        by_role = {role: group for group in groups for role in group.settings.roles}
        yield Runtime(
            by_role,
            lambda: transport_between(
                config.engine.transport,
                by_role["policy"].processes[0],
                by_role["rollout"].processes,
                distant=object_store.NAME,
            ),
            {group.name: group.processes for group in groups},
            ray.get_runtime_context().gcs_address,
            supervisor,
        )


def _elastic(
    name: str, config: RunConfig, placement: _Placement, supervisor: Supervisor, run_dir: Path
) -> ElasticGroup:
    return ElasticGroup(
        name,
        config.groups[name],
        config.timeouts,
        partial(placement.start, name),
        supervisor.wake,
        readable=[str(run_dir / CONFIG), *data_paths(config)],
        writable=[str(run_dir)],
    )


def _start(
    fixed: Sequence[Group], supervisor: Supervisor, config: RunConfig, run_dir: Path, gcs: Gcs
) -> None:
    """Wait until every process is there, knows its peers and can use its paths."""
    timeouts, elastic = config.timeouts, supervisor.elastic
    lost = [process.lost for group in fixed for process in group.ranks]
    liveness = (gcs.lost, *lost, *(pool.failed for pool in elastic), supervisor.stopped)
    for group in fixed:
        group.liveness = liveness
    for pool in elastic:
        pool.liveness = liveness
    starting = [pool.started() for pool in elastic]
    for group in fixed:
        group.start(timeouts)
        now = time.monotonic()
        beats = [Heartbeat(process, timeouts.heartbeat, now) for process in group.ranks]
        supervisor.watch(group.name, beats)
        readable = [str(run_dir / CONFIG), *data_paths(config)]
        group.probe(readable, [str(run_dir)], timeouts.start)
    for pending in starting:
        pending.result(timeouts.start)


def _gcs(run_dir: Path) -> Gcs:
    address = ray.get_runtime_context().gcs_address
    return Gcs(address, Path(ray_worker.node.get_logs_dir_path()), run_dir / "logs")


def _unless_lost(gcs: Gcs, act: Callable[[], None]) -> None:
    """What has to go through Ray's control service waits a minute for one that is lost. Processes
    end with their raylet, and that ends without the service.
    """
    if not gcs.lost.future.done():
        act()


class _Placement:
    """Where the processes of a run are: the ranks of the recipe in the bundles of one placement
    group, those added later wherever there is room.
    """

    def __init__(self, config: RunConfig, launcher: Launcher) -> None:
        self.groups, self.launcher = config.groups, launcher
        owners = [(name, rank) for name, g in self.groups.items() for rank in range(g.ranks)]
        self.bundles = {owner: number for number, owner in enumerate(owners)}
        self.resources = [_resources(self.groups[name]) for name, _ in owners]
        self.placement = placement_group(self.resources, strategy="PACK")
        self.requested = False
        try:
            self._wait(config.timeouts.start)
        except RlsysError:
            remove_placement_group(self.placement)
            raise

    def _wait(self, seconds: float) -> None:
        """Until all bundles are granted. Raises: RoleTimeout; ClusterTooSmall when a node that
        the groups need is found dead meanwhile.
        """
        deadline = time.monotonic() + seconds
        while not self.placement.wait(LOOK_SECONDS):
            check_resources(self.groups, ray.cluster_resources())
            if time.monotonic() > deadline:
                raise RoleTimeout(
                    f"the cluster did not grant {self.resources} within {seconds:.0f} s; "
                    "something else holds its CPUs or GPUs (see `ray status`)"
                )

    def start(self, name: str, rank: int) -> RemoteProcess:
        """The process of a rank. More nodes are requested of Ray where there is no room for it."""
        settings, bundle = self.groups[name], self.bundles.get((name, rank))
        if bundle is not None and placement_group_table(self.placement)["state"] == "CREATED":
            return self.launcher.start(name, settings, rank, self.placement, bundle)
        wanted, free = _resources(settings), ray.available_resources()
        if any(free.get(resource, 0.0) < amount for resource, amount in wanted.items()):
            added = max(rank + 1 - settings.ranks, 0)
            request_resources(bundles=[*self.resources, *[wanted] * added])
            self.requested = True
        return self.launcher.start(name, settings, rank, None)

    def remove(self) -> None:
        if self.requested:
            request_resources(bundles=[])
        remove_placement_group(self.placement)


def _resources(group: GroupConfig) -> dict[str, float]:
    return {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})


def check_private(config: RunConfig) -> None:
    """What a private Ray here will have is known before it starts, or anything else does.

    Raises: ClusterTooSmall when the groups do not fit.
    """
    if not _joins(config.cluster):
        have = {"CPU": config.cluster.cpus or os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
        check_resources(config.groups, have)


def _joins(config: ClusterConfig) -> bool:
    """Whether there is a cluster to join."""
    return config.address != "auto" or "RAY_ADDRESS" in os.environ


def check_resources(groups: Mapping[str, GroupConfig], available: Mapping[str, float]) -> None:
    """Raises: ClusterTooSmall when the summed CPUs or GPUs of all groups exceed the cluster's."""
    for resource, key in (("CPU", "cpus"), ("GPU", "gpus")):
        needed = sum(getattr(g, key) * g.ranks for g in groups.values())
        have = available.get(resource, 0.0)
        if needed > have + 1e-6:
            parts = ", ".join(
                f"{name} {g.ranks} x {getattr(g, key):g}" for name, g in groups.items()
            )
            raise ClusterTooSmall(
                f"groups.*.{key}: {needed:g} {resource}s are needed ({parts}), "
                f"the cluster has {have:g}; lower ranks or {key} (fractions are fine)"
            )


@contextmanager
def _ray(config: ClusterConfig) -> Iterator[bool]:
    """Yields True for a private Ray on this machine. A joined cluster is left running."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    joined = _joins(config)
    with nullcontext() if joined else private_folder() as temp:
        try:
            with kept_signals():
                _connect(config, temp)
            yield not joined
        finally:
            ray.shutdown()


def _connect(config: ClusterConfig, temp: str | None) -> None:
    """To a private Ray with its files in ``temp``, or without it to the cluster of the recipe."""
    if temp is None:
        try:
            ray.init(address=config.address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise ConfigError(f"cluster.address: {config.address}: {error}") from error
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":  # unset, Ray sets it to token
        raise ConfigError("RAY_AUTH_MODE: a private Ray keeps its token authentication; unset it")
    ray.init(
        address="local",
        num_cpus=config.cpus or os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=temp,
        _node_ip_address=config.node_ip,
    )

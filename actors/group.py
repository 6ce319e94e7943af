"""Groups of Ray actors: spawned once, alive across stages, every answer a ``Pending``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.host import Host, HostInfo
from rlsys.batch import PreferencePairs, Rollouts, TrainBatch
from rlsys.config.check import ENGINES
from rlsys.config.schema import GroupConfig, TimeoutConfig
from rlsys.engines.environment import CPU_ENVIRONMENT, ENVIRONMENT
from rlsys.engines.train import Rank
from rlsys.errors import RlsysError
from rlsys.roles import Part, Pending, ProcessDied

CALL_THREADS = 8  # calls a process with an engine takes at a time; their requests share it


class Group:
    """Ranks 0..n-1 of one group, in the bundles of a placement group."""

    def __init__(
        self,
        name: str,
        settings: GroupConfig,
        placement: PlacementGroup,
        bundles: Sequence[int],
        *,
        logs: Path,
        seed: int,
        loopback: bool,
    ) -> None:
        self.name, self.settings = name, settings
        self.hosts_engine = not set(ENGINES).isdisjoint(settings.roles)
        threads = str(settings.threads)
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment |= {"DS_ACCELERATOR": "cuda"} if settings.gpus else CPU_ENVIRONMENT
        if loopback:
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        calls = CALL_THREADS if self.hosts_engine else 1
        self.ranks = [
            ray.remote(concurrency_groups={"watch": 1, "calls": calls})(Host)
            .options(
                num_cpus=settings.cpus,
                num_gpus=settings.gpus,
                max_restarts=0,
                runtime_env={"env_vars": environment},
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, bundle),
            )
            .remote(f"{name}-{rank}", str(logs / f"{name}-{rank}.log"), seed)
            for rank, bundle in enumerate(bundles)
        ]
        self.hosts = [HostInfo("?", "?", 0) for _ in self.ranks]
        self.guards: tuple[Part, ...] = ()
        self._sent: OrderedDict[int, tuple[Any, ray.ObjectRef]] = OrderedDict()

    @property
    def label(self) -> str:
        """How an error names a process of this group when no single role was at work."""
        return "+".join(self.settings.roles)

    def start(self, timeouts: TimeoutConfig) -> list[Part]:
        """Wait for the processes, connect them; returns guards that fail when one dies."""
        self.hosts = self.all(self.label, "info").result(timeouts.start)
        port = 0
        if not self.hosts_engine:
            port = self.one(self.label, 0, "free_port").result(timeouts.start)
        address = self.hosts[0].ip
        joins = [
            self._part(
                self.label,
                rank,
                "join",
                (Rank(rank, len(self.ranks), address, port), timeouts.collective),
            )
            for rank in range(len(self.ranks))
        ]
        Pending(joins, list).result(timeouts.start)
        return [
            self._part(self.label, rank, "alive", (), group="watch")
            for rank in range(len(self.ranks))
        ]

    def all(
        self, role: str, method: str, *args: Any, combine: Callable[[list[Any]], Any] = list
    ) -> Pending[Any]:
        """Call a method of the host on every rank."""
        shared = self._share(args)
        parts = [self._part(role, rank, method, shared) for rank in range(len(self.ranks))]
        return Pending(parts, combine, self.guards)

    def one(self, role: str, rank: int, method: str, *args: Any) -> Pending[Any]:
        """Call a method of the host on one rank."""
        part = self._part(role, rank, method, self._share(args))
        return Pending([part], lambda values: values[0], self.guards)

    def _share(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Batches enter the object store once, however many roles and ranks read them."""
        return tuple(self._put(arg) if _is_batch(arg) else arg for arg in args)

    def _put(self, batch: Any) -> ray.ObjectRef:
        key = id(batch)
        if key not in self._sent or self._sent[key][0] is not batch:
            self._sent[key] = (batch, ray.put(batch))
        while len(self._sent) > 16:
            self._sent.popitem(last=False)
        return self._sent[key][1]

    def _part(
        self, role: str, rank: int, method: str, args: Sequence[Any], group: str = "calls"
    ) -> Part:
        call = getattr(self.ranks[rank], method).options(concurrency_group=group)
        return to_part(call.remote(*args), role, rank, self.hosts[rank])


def to_part(ref: ray.ObjectRef, role: str, rank: int, host: HostInfo) -> Part:
    """A Ray object as a future whose errors say what happened in the terms of rlsys."""
    answer: Future[Any] = Future()

    def settle(source: Future[Any]) -> None:
        error = source.exception()
        if error is None:
            answer.set_result(source.result())
        elif isinstance(error, ActorDiedError | ActorUnavailableError):
            answer.set_exception(ProcessDied(f"process {host.pid} died ({_first_line(error)})"))
        elif isinstance(error, RayTaskError):
            cause = error.cause if isinstance(error.cause, Exception) else error
            answer.set_exception(cause)
        else:
            answer.set_exception(error)

    ref.future().add_done_callback(settle)
    return Part(answer, role, rank, host.host)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "death" in line.lower() or "exit" in line.lower()]
    return (reasons or lines or [type(error).__name__])[0][:200]


def _is_batch(value: Any) -> bool:
    return isinstance(value, Rollouts | TrainBatch | PreferencePairs)


def probe_paths(
    groups: Sequence[Group], readable: list[str], writable: list[str], timeout: float
) -> None:
    """Every process tries the paths it will use. Raises: RlsysError naming path and node."""
    for group in groups:
        pending = group.all(group.label, "probe", readable, writable)
        problems = [problem for answers in pending.result(timeout) for problem in answers]
        if problems:
            raise RlsysError(f"group {group.name!r}: {problems[0]}")

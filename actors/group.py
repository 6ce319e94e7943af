"""Groups of Ray actors, which live across stages and return a ``Pending`` from every call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.process import ProcessActor
from rlsys.batch import PolicyBatch, PreferencePairs, Rollouts, ValueBatch
from rlsys.config.schema import GroupConfig, TimeoutConfig
from rlsys.engines.environment import CPU_ENVIRONMENT, ENVIRONMENT, OFFLINE
from rlsys.errors import RlsysError
from rlsys.roles.registry import ROLES
from rlsys.runtime.group import ProcessInfo, WorkerSpec
from rlsys.runtime.pending import Part, Pending, ProcessDied
from rlsys.runtime.process_group import Rank

CALL_THREADS = 8  # concurrent calls of a process with an engine, which share the engine


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
        token: str,
        loopback: bool,
    ) -> None:
        self.name, self.settings = name, settings
        self.exclusive = any(ROLES[role].exclusive for role in settings.roles)
        threads = str(settings.threads)
        environment = {
            **ENVIRONMENT,
            **OFFLINE,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        environment |= {"DS_ACCELERATOR": "cuda"} if settings.gpus else CPU_ENVIRONMENT
        if loopback:
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        calls = CALL_THREADS if self.exclusive else 1
        self.ranks = [
            ray.remote(concurrency_groups={"watch": 1, "calls": calls})(ProcessActor)
            .options(
                num_cpus=settings.cpus,
                num_gpus=settings.gpus,
                max_restarts=0,
                runtime_env={"env_vars": environment},
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, bundle),
            )
            .remote(f"{name}-{rank}", str(logs / f"{name}-{rank}.log"), seed, token)
            for rank, bundle in enumerate(bundles)
        ]
        self.processes = [ProcessInfo("?", "?", 0) for _ in self.ranks]
        self.liveness: tuple[Part, ...] = ()
        self._sent: OrderedDict[int, tuple[Any, ray.ObjectRef]] = OrderedDict()

    @property
    def label(self) -> str:
        """Name of this group's processes in errors that concern no single role."""
        return "+".join(self.settings.roles)

    @property
    def size(self) -> int:
        return len(self.ranks)

    def start(self, timeouts: TimeoutConfig) -> list[Part]:
        """Wait for the processes and connect them. Returns: parts that fail when a process dies."""
        infos = self._everywhere(self.label, "info").result(timeouts.start)
        self.processes = list(infos)
        port = 0
        if not self.exclusive:
            port = self._somewhere(self.label, 0, "open_store").result(timeouts.start)
        address = self.processes[0].ip
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
        return [self._liveness(rank) for rank in range(len(self.ranks))]

    def create(self, role: str, spec: WorkerSpec) -> Pending[list[None]]:
        return self._everywhere(role, "create", role, spec)

    def drop(self, role: str) -> Pending[list[None]]:
        return self._everywhere(role, "drop", role)

    def call_all(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[list[Any]]:
        return self._everywhere(role, "call", role, method, *args, **kwargs)

    def call_one(
        self, role: str, rank: int, method: str, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        return self._somewhere(role, rank, "call", role, method, *args, **kwargs)

    def probe(self, readable: list[str], writable: list[str], timeout: float) -> None:
        """Every process checks the paths it will use. Raises: RlsysError naming path and node."""
        answers = self._everywhere(self.label, "probe", readable, writable).result(timeout)
        problems = [problem for each in answers for problem in each]
        if problems:
            raise RlsysError(f"group {self.name!r}: {problems[0]}")

    def _everywhere(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[list[Any]]:
        shared = self._share(args)
        parts = [self._part(role, rank, method, shared, kwargs) for rank in range(len(self.ranks))]
        return Pending(parts, list, self.liveness)

    def _somewhere(
        self, role: str, rank: int, method: str, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        part = self._part(role, rank, method, self._share(args), kwargs)
        return Pending([part], lambda values: values[0], self.liveness)

    def _share(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Put batches into the object store once for all roles and ranks that read them."""
        return tuple(self._put(arg) if _is_batch(arg) else arg for arg in args)

    def _put(self, batch: Any) -> ray.ObjectRef:
        key = id(batch)
        if key not in self._sent or self._sent[key][0] is not batch:
            self._sent[key] = (batch, ray.put(batch))
        while len(self._sent) > 16:
            self._sent.popitem(last=False)
        return self._sent[key][1]

    def _part(
        self,
        role: str,
        rank: int,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Part:
        call = self.ranks[rank].run.options(concurrency_group="calls")
        return to_part(call.remote(method, *args, **kwargs), role, rank, self.processes[rank])

    def _liveness(self, rank: int) -> Part:
        ref = self.ranks[rank].alive.options(concurrency_group="watch").remote()
        return to_part(ref, self.label, rank, self.processes[rank])


def to_part(ref: ray.ObjectRef, role: str, rank: int, process: ProcessInfo) -> Part:
    """A Ray object as a future, with Ray's errors replaced by ProcessDied or the task's error."""
    answer: Future[Any] = Future()

    def settle(source: Future[Any]) -> None:
        error = source.exception()
        if error is None:
            answer.set_result(source.result())
        elif isinstance(error, ActorDiedError | ActorUnavailableError):
            answer.set_exception(ProcessDied(f"process {process.pid} died ({_first_line(error)})"))
        elif isinstance(error, RayTaskError):
            cause = error.cause if isinstance(error.cause, Exception) else error
            answer.set_exception(cause)
        else:
            answer.set_exception(error)

    ref.future().add_done_callback(settle)
    return Part(answer, role, rank, process.host)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "death" in line.lower() or "exit" in line.lower()]
    return (reasons or lines or [type(error).__name__])[0][:200]


def _is_batch(value: Any) -> bool:
    return isinstance(value, Rollouts | PolicyBatch | ValueBatch | PreferencePairs)

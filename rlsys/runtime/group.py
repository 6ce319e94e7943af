"""Interface between drivers and processes: role handles call ranks through ``RankGroup``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from rlsys.errors import ConfigError
from rlsys.runtime.pending import Metrics, Pending

if TYPE_CHECKING:
    from rlsys.roles.factory import WorkerFactory

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="WorkerSpec", contravariant=True)


@dataclass(frozen=True)
class ProcessInfo:
    """Where a rank runs."""

    ip: str
    host: str
    pid: int


class WorkerSpec(Protocol):
    """All that a rank needs to build the worker of a role; crosses processes."""

    def build(self, factory: WorkerFactory) -> object:
        """Raises: ModelError, DataError."""
        ...


class RankGroup(Protocol):
    """Ranks 0..size-1, each a process that hosts the same roles. Every call returns at once; its
    result fails when a process of the run dies. In an elastic group ranks may die, join and leave:
    ``size`` is the number that are ready, and a call of all concerns the ranks of that moment.
    """

    @property
    def size(self) -> int: ...

    def create(self, role: str, spec: WorkerSpec) -> Pending[list[None]]:
        """Build the worker ``spec.build(factory)`` on every rank, replacing one of that name."""
        ...

    def drop(self, role: str) -> Pending[list[None]]:
        """Free the worker of a role on every rank."""
        ...

    def call_all(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[list[Any]]:
        """Call a worker's method on every rank. Results are in the order of the ranks."""
        ...

    def call_one(
        self, role: str, rank: int, method: str, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        """Call a worker's method on one rank."""
        ...

    def call_any(self, role: str, method: str, *args: Any, **kwargs: Any) -> Pending[Any]:
        """Call a worker's method on one ready rank, whichever has least to do; in an elastic group
        again on another one when its process dies first.
        """
        ...

    def install(self, role: str, method: str, *args: Any, whole: bool) -> Pending[list[Any]]:
        """Call a method that sets the state of a worker on every rank. In an elastic group a rank
        that joins later makes the same calls before it is ready. The call replaces an earlier one
        of the same method; with ``whole``, all since the worker was created.
        """
        ...


class Monitor(Protocol):
    """What watches over the processes of a run."""

    def row(self, stage: str, step: int, metrics: Mapping[str, float]) -> Metrics:
        """Take note of a stage's step and its metrics. Returns: metrics of the processes."""
        ...

    def events(self) -> list[str]:
        """What happened to processes since the last call, a line each."""
        ...


class NoMonitor:
    """Of the calling process alone."""

    def row(self, stage: str, step: int, metrics: Mapping[str, float]) -> Metrics:
        return {}

    def events(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Runtime:
    """The groups of a run by role, and how weights travel between them.

    transport: name of the transport from trainers to rollout engines, as they are placed when it is
    called; groups: group name -> its processes, for ``run.json``; address: of the Ray cluster,
    empty in process.
    """

    by_role: Mapping[str, RankGroup]
    transport: Callable[[], str]
    groups: Mapping[str, list[ProcessInfo]]
    address: str = ""
    monitor: Monitor = field(default_factory=NoMonitor)

    def group(self, role: str) -> RankGroup:
        """Raises: ConfigError for a role that no group hosts."""
        if role not in self.by_role:
            raise ConfigError(
                f"groups: no group hosts the role {role!r}; add it to a group's roles "
                f"(placed: {', '.join(sorted(self.by_role)) or 'none'})"
            )
        return self.by_role[role]


class RoleHandle(Generic[S]):
    """A role as its driver sees it: typed calls of the worker's methods on a group of ranks. Its
    type says which spec builds the worker; of several, their union.
    """

    def __init__(self, group: RankGroup, role: str) -> None:
        self.group, self.role = group, role

    def create(self, spec: S) -> Pending[list[None]]:
        """Build the role's worker on every rank."""
        return self.group.create(self.role, spec)

    def drop(self) -> Pending[list[None]]:
        """Free the role's worker on every rank."""
        return self.group.drop(self.role)

    def _all(
        self, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Pending[list[R]]:
        """Call ``method``, an unbound method of the worker class, on every rank."""
        return self.group.call_all(self.role, method.__name__, *args, **kwargs)

    def _one(
        self, rank: int, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Pending[R]:
        """Call ``method`` on one rank."""
        return self.group.call_one(self.role, rank, method.__name__, *args, **kwargs)

    def _any(
        self, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Pending[R]:
        """Call ``method`` on one ready rank, whichever."""
        return self.group.call_any(self.role, method.__name__, *args, **kwargs)

    def _install(
        self, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Pending[list[R]]:
        """Call ``method``, which sets the state of a worker, on every rank and on those that join
        later, in place of an earlier call of it. Arguments are positional.
        """
        assert not kwargs
        return self.group.install(self.role, method.__name__, *args, whole=False)

    def _install_whole(
        self, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Pending[list[R]]:
        """As ``_install``, in place of all such calls since the worker was created."""
        assert not kwargs
        return self.group.install(self.role, method.__name__, *args, whole=True)

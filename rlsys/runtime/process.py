"""One rank's process: builds the workers of its roles and runs their methods. No Ray here."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from rlsys.engines.transports.base import Transport
from rlsys.leftovers import shared_folder
from rlsys.roles.factory import WorkerFactory
from rlsys.runtime import trace
from rlsys.runtime.group import ProcessInfo, WorkerSpec
from rlsys.runtime.process_group import Rank, join_group, open_store


class RankProcess:
    """Args: seed: of torch's generator; transports: by name; token: names a run's shared files."""

    def __init__(
        self, seed: int, transports: Mapping[str, Transport], token: str, ip: str = "127.0.0.1"
    ) -> None:
        torch.manual_seed(seed)
        self.transports, self.token, self.ip = transports, token, ip
        self.workers: dict[str, Any] = {trace.ROLE: trace.Recorder()}
        self._factory: WorkerFactory | None = None
        self._store: TCPStore | None = None

    @property
    def factory(self) -> WorkerFactory:
        assert self._factory is not None, "call join first"
        return self._factory

    def info(self) -> ProcessInfo:
        return ProcessInfo(self.ip, socket.gethostname(), os.getpid())

    def open_store(self) -> int:
        """Called on rank 0 before the ranks join. Returns: the store's port."""
        self._store = open_store(self.ip)
        return self._store.port

    def join(self, rank: Rank, timeout: float) -> None:
        """Join the group as ``rank``. Args: timeout: of one collective, seconds."""
        if rank.port:
            join_group(rank, self._store, timeout)
        cpu = not torch.cuda.is_available()
        self._factory = WorkerFactory(rank, self.transports, self.token, cpu=cpu, timeout=timeout)

    def close(self) -> None:
        """The run ends: remove the files its processes share on this machine."""
        shutil.rmtree(shared_folder(self.token), ignore_errors=True)

    def probe(self, readable: list[str], writable: list[str]) -> list[str]:
        """Problems with the paths this process will use, checked on its own node."""
        host = socket.gethostname()
        problems = [f"{p}: not readable on {host}" for p in readable if not os.access(p, os.R_OK)]
        problems += [f"{p}: not writable on {host}" for p in writable if not os.access(p, os.W_OK)]
        return problems

    def create(self, role: str, spec: WorkerSpec) -> None:
        """Build a role's worker, replacing one of the same name."""
        self.workers.pop(role, None)
        with trace.span("create", role):
            self.workers[role] = spec.build(self.factory)

    def drop(self, role: str) -> None:
        self.workers.pop(role, None)

    def call(self, role: str, method: str, *args: Any, **kwargs: Any) -> Any:
        with trace.span(method, role):
            return getattr(self.workers[role], method)(*args, **kwargs)

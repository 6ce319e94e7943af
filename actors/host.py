"""The one class that runs as a Ray actor: a process of a group, hosting the roles it is given."""

from __future__ import annotations

import os
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.engines.train import Rank, join_group


@dataclass(frozen=True)
class HostInfo:
    """Where a process runs."""

    ip: str
    host: str
    pid: int


class Host:
    """Plain class; ``ray.remote`` is applied at spawn. Methods are called by a ``Group``."""

    def __init__(self, name: str, log_file: str, seed: int) -> None:
        import ray
        import torch

        self.name = name
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        with Path(log_file).open("a") as stream:
            os.dup2(stream.fileno(), sys.stdout.fileno())
            os.dup2(stream.fileno(), sys.stderr.fileno())
        torch.manual_seed(seed)
        self.roles: dict[str, Any] = {}
        self.writers: dict[str, Any] = {}
        self.bench: Any = None
        self.ip = ray.util.get_node_ip_address()

    def info(self) -> HostInfo:
        return HostInfo(self.ip, socket.gethostname(), os.getpid())

    def free_port(self) -> int:
        with socket.socket() as probe:
            probe.bind((self.ip, 0))
            return int(probe.getsockname()[1])

    def join(self, rank: Rank, timeout: float) -> None:
        """Become a rank of the group and prepare the bench its roles are built on."""
        import torch

        from actors.transport import AnyReader
        from rlsys.engines.workbench import Workbench

        self.rank = rank
        if rank.port:
            join_group(rank, timeout, deepspeed=True)
        self.bench = Workbench(rank, AnyReader(), cpu=not torch.cuda.is_available())

    def probe(self, readable: list[str], writable: list[str]) -> list[str]:
        """What is wrong with the paths this process will use, seen from its own node."""
        host = socket.gethostname()
        problems = [f"{p}: not readable on {host}" for p in readable if not os.access(p, os.R_OK)]
        problems += [f"{p}: not writable on {host}" for p in writable if not os.access(p, os.W_OK)]
        return problems

    def create(self, role: str, spec: Any) -> None:
        """Build a role here, replacing one of the same name."""
        self.roles.pop(role, None)
        self.roles[role] = self.bench.build(spec)

    def drop(self, role: str) -> None:
        self.roles.pop(role, None)

    def call(self, role: str, method: str, *args: Any) -> Any:
        return getattr(self.roles[role], method)(*args)

    def publish(self, role: str, version: int, transport: str, token: str) -> Any:
        """Publish a role's weights; a transport's writer lives as long as this process."""
        from actors.transport import make_writer

        if transport not in self.writers:
            self.writers[transport] = make_writer(transport, token)
        return self.roles[role].publish(version, self.writers[transport])

    def save(self, role: str, folder: str) -> None:
        self.roles[role].save_model(Path(folder))

    def save_state(self, role: str, folder: str, tag: str) -> None:
        """Weights, optimiser and schedule of a trained role. Collective."""
        self.roles[role].engine.save(Path(folder), tag)

    def load_state(self, role: str, folder: str, tag: str) -> None:
        self.roles[role].engine.load(Path(folder), tag)

    def alive(self) -> None:
        """Answers only by the death of the process: what every wait is guarded by."""
        threading.Event().wait()

"""A rank's process as a Ray actor."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import ray

from rlsys.leftovers import hold, shared_folder, sweep_shared
from rlsys.runtime.process import RankProcess
from rlsys.runtime.trace import PROCESS, record_start


def make_process(name: str, log_file: str, seed: int, token: str) -> Any:
    """Called inside the new process; redirects its output to ``log_file``."""
    from actors.object_store import CLUSTER_TRANSPORTS

    if Path(log_file).parent.is_dir():  # else this node lacks the run directory, as it will say
        with Path(log_file).open("a") as stream:
            os.dup2(stream.fileno(), sys.stdout.fileno())
            os.dup2(stream.fileno(), sys.stderr.fileno())
    ip = ray.util.get_node_ip_address()
    if interface := interface_of(ip):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return RankProcess(seed, CLUSTER_TRANSPORTS, token, ip)


def interface_of(ip: str) -> str:
    """Name of the network interface with this address, empty if none has it. Left to itself, gloo
    takes the address of the host name, which may be a loopback one or none at all.
    """
    named = psutil.net_if_addrs().items()
    return next((name for name, all_of in named if ip in [each.address for each in all_of]), "")


class ProcessActor:
    """Plain class; ``ray.remote`` is applied at spawn. Its methods are those of ``RankProcess``."""

    def __init__(self, name: str, log_file: str, seed: int, token: str) -> None:
        sweep_shared()
        self.held = hold(shared_folder(token))  # until this process ends
        self.process = make_process(name, log_file, seed, token)
        record_start(PROCESS)

    def run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the process by name."""
        return getattr(self.process, method)(*args, **kwargs)

    def ping(self) -> None:
        """Answered at once: the process runs."""

    def alive(self) -> None:
        """Never returns: its result fails when the process dies."""
        threading.Event().wait()

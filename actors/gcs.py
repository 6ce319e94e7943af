"""Ray's control service (GCS) as one more process of a run: without it nothing can be started, and
Ray aborts the driver after a minute.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.heartbeat import PERIOD
from rlsys.runtime.group import ProcessInfo
from rlsys.runtime.pending import ClusterLost, Part

ROLE = "gcs"
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client opens a connection (RFC 9113, 3.4), which its server answers by itself."""


class Gcs:
    """Implements ``actors.heartbeat.Process``. Args: address: host:port; ray_logs: Ray's log folder
    on this node; logs: of the run, where the end of the service's log is kept when it is lost.
    """

    label, rank = ROLE, 0

    def __init__(self, address: str, ray_logs: Path, logs: Path) -> None:
        host, _, port = address.rpartition(":")
        self.info = ProcessInfo(host, host, 0)
        self.lost = Part(Future(), ROLE, 0, host)
        self._port, self._ray_logs, self._logs = int(port), ray_logs, logs

    def call(self, role: str, method: str, /, *args: Any, **kwargs: Any) -> Part:
        raise NotImplementedError("the service has no methods of ours")

    def ping(self) -> Part:
        """Its answer, or its hanging up, is a sign of life."""
        answer: Future[None] = Future()

        def ask() -> None:
            try:
                address = (self.info.ip.strip("[]"), self._port)
                with socket.create_connection(address, timeout=PERIOD) as connection:
                    connection.sendall(HELLO)
                    connection.recv(1)
                answer.set_result(None)
            except OSError as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="ping-gcs", daemon=True).start()
        return Part(answer, ROLE, 0, self.info.host)

    def kill(self, reason: str) -> None:
        """Fail what waits for the run and keep the log. The service itself belongs to Ray."""
        with suppress(OSError):  # on another node, or gone with it
            text = (self._ray_logs / "gcs_server.out").read_bytes()
            (self._logs / f"{ROLE}-0.log").write_bytes(text)
        with suppress(InvalidStateError):
            why = f"Ray's control service at {self.info.ip}:{self._port}: {reason}"
            self.lost.future.set_exception(ClusterLost(why))

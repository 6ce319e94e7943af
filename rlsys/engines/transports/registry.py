"""The transports that need no Ray; ``actors`` adds its own."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.config.engine import AUTO
from rlsys.engines.transports import broadcast, shared_memory
from rlsys.engines.transports.base import Transport
from rlsys.registries import by_name
from rlsys.runtime.group import ProcessInfo

TRANSPORTS: dict[str, Transport] = by_name(
    "transport",
    [
        (shared_memory.NAME, shared_memory.SharedMemory()),
        (broadcast.NAME, broadcast.Broadcast()),
    ],
)


def transport_between(
    setting: str, trainer: ProcessInfo, engines: Sequence[ProcessInfo], *, distant: str
) -> str:
    """Name of the transport for ``engine.transport``, by where the processes are.

    Args: trainer: that publishes; distant: the transport between nodes.
    """
    if setting != AUTO:
        return setting
    nodes = {(process.ip, process.host) for process in (trainer, *engines)}
    return shared_memory.NAME if len(nodes) == 1 else distant

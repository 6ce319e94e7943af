"""The transports that need no Ray; ``actors`` adds its own."""

from __future__ import annotations

from rlsys.engines.transports import shared_memory
from rlsys.engines.transports.base import Transport

TRANSPORTS: dict[str, Transport] = {shared_memory.NAME: shared_memory.SharedMemory()}

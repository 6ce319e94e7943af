"""Where a driver's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(into: dict[str, float], phase: str) -> Iterator[None]:
    """Seconds of the block, as ``time/<phase>``."""
    start = time.perf_counter()
    yield
    into[f"time/{phase}"] = time.perf_counter() - start

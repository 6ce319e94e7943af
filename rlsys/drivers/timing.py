"""Timing of a driver's phases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rlsys.runtime.trace import span


@contextmanager
def timed(into: dict[str, float], phase: str) -> Iterator[None]:
    """Record the seconds of the block as ``time/<phase>``, and in the trace."""
    start = time.perf_counter()
    with span(phase):
        yield
    into[f"time/{phase}"] = time.perf_counter() - start

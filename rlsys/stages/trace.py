"""Collects what ran when from all processes of a run."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from rlsys.config.schema import RunConfig
from rlsys.runtime import trace
from rlsys.runtime.group import Runtime


@dataclass
class TraceFile:
    """``trace.json`` of a run directory."""

    folder: Path
    taken: list[trace.Spans] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / trace.FILE

    @property
    def lost(self) -> str:
        """What is not in it, as text."""
        count = sum(each.lost for each in self.taken)
        return f"; the earliest {count} spans of long stages are not in it" if count else ""

    def collect(self, config: RunConfig, runtime: Runtime) -> None:
        """Add the latest spans of every process and of this one, and write the file."""
        groups = [runtime.group(each.roles[0]) for each in config.groups.values()]
        pending = [group.call_all(trace.ROLE, trace.Recorder.take.__name__) for group in groups]
        for each in pending:
            self.taken += each.result(config.timeouts.call)
        self.taken.append(trace.Recorder().take())
        partial = self.path.with_name(f".{trace.FILE}.partial")
        partial.write_text(json.dumps(trace.chrome_trace(self.taken)))
        os.replace(partial, self.path)

"""What a run does about an error: start the processes again, or end with one page about it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.markup import escape

from rlsys.config.schema import GroupConfig
from rlsys.errors import ClusterTooSmall, RlsysError, RoleError, RoleTimeout
from rlsys.runtime.pending import ClusterLost, ProcessDied

T = TypeVar("T")
FIRST_BACKOFF = 2.0  # seconds before the first restart; doubles with each
MAX_BACKOFF = 60.0
LOG_LINES = 20


def restartable(error: RlsysError) -> bool:
    """Whether new processes may mend it: a process died, was ended or lost its node. A method that
    raised would raise again.
    """
    cause = error.__cause__
    died = isinstance(cause, ProcessDied) and not isinstance(cause, ClusterLost)
    return isinstance(error, RoleError) and died


def with_restarts(
    attempt: Callable[[], T],
    limit: int,
    show: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """The result of ``attempt``, which is made again, ``limit`` times at most, when a process has
    died. What the cluster lacks after that, it lost: the first cause is raised.
    """
    lost: RoleError | None = None
    for restart in range(limit + 1):
        try:
            return attempt()
        except ClusterTooSmall as error:
            if lost is None:
                raise
            cause = f"{lost.cause}; what is left is too small: {error}"
            raise RoleError(lost.role, lost.rank, lost.host, cause) from lost.__cause__
        except RoleError as error:
            if restart == limit or not restartable(error):
                raise
            lost = error
            show(
                f"[yellow]restart {restart + 1} of {limit}[/yellow] role {error.role!r} (rank "
                f"{error.rank}, host {error.host}): {escape(error.cause)}; going on from the last "
                "checkpoint"
            )
        pause(min(FIRST_BACKOFF * 2**restart, MAX_BACKOFF))
    raise AssertionError("the last attempt returns or raises")


@dataclass
class FailurePage:
    """Shows one page about a failed role, or about an error that rlsys does not raise itself, when
    it ends the block. An error about input is shown by whoever catches it.
    """

    run_dir: Path
    groups: Mapping[str, GroupConfig]
    show: Callable[[str], None]

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        known = isinstance(error, RlsysError) and not isinstance(error, RoleError | RoleTimeout)
        if isinstance(error, Exception) and not known:
            self.show(escape(self.page(error)))

    def page(self, error: Exception) -> str:
        """First cause, who it was, the end of its log, what to do."""
        failed = error if isinstance(error, RoleError) else None
        cause = failed.cause if failed else f"{type(error).__name__}: {error}"
        lines = ["", f"The run ended: {cause}"]
        log = None
        if failed is not None:
            log = self._log(failed)
            lines.append(f"  role {failed.role}, rank {failed.rank}, host {failed.host}")
        elif not isinstance(error, RlsysError):
            last = traceback.extract_tb(error.__traceback__)[-1]
            lines.append(f"  in {last.name}, {last.filename}:{last.lineno}")
        if log is not None and log.exists():
            ending = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            lines += [f"  the end of {log}:", *(f"    {line}" for line in ending)]
        lines += [f"  {_advice(error)}", f"  files: {self.run_dir}"]
        return "\n".join(lines)

    def _log(self, error: RoleError) -> Path:
        role = error.role.split("+")[0]
        names = (name for name, group in self.groups.items() if role in group.roles)
        return self.run_dir / "logs" / f"{next(names, role)}-{error.rank}.log"


def _advice(error: Exception) -> str:
    go_on = "the same command goes on from the last checkpoint"
    if isinstance(error, RoleTimeout):
        return f"what to do: if that is only slow, raise timeouts.*; {go_on}"
    if isinstance(error, RoleError) and isinstance(error.__cause__, ProcessDied):
        return f"what to do: look for a lack of memory or a lost node; {go_on}"
    return f"what to do: the log says what was raised; once that is mended {go_on}"

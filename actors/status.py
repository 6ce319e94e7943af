"""How a run's processes stand: a file, a control actor and gauges of it. No Ray here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.elastic import ElasticGroup
from actors.heartbeat import Heartbeat
from actors.members import State

FILE = "status.json"


def snapshot(
    stage: str, step: int, fixed: Mapping[str, Sequence[Heartbeat]],
    elastic: Sequence[ElasticGroup], now: float,
) -> dict[str, Any]:  # fmt: skip
    """What ``status.json`` holds. Args: fixed: group -> its processes, which live while the run
    does; now: by the clock of the heartbeats.
    """
    epoch = time.time() - now
    rows = [
        _row(group, beat, beat.process.label.split("+"), State.READY, epoch)
        for group, beats in fixed.items()
        for beat in beats
    ]
    for group in elastic:
        for member, state in group.states():
            entry = _row(group.name, member.beat, group.settings.roles, state, epoch)
            own = {"rank": member.rank, "weight_version": member.version}
            rows.append(entry | own | {"tokens_per_s": member.rate})
    return {"time": time.time(), "stage": stage, "step": step, "processes": rows}


def _row(
    group: str, beat: Heartbeat | None, roles: Sequence[str], state: State, epoch: float
) -> dict[str, Any]:
    return {
        "group": group,
        "rank": beat.process.rank if beat else -1,
        "roles": list(roles),
        "host": beat.process.info.host if beat else "",
        "pid": beat.process.info.pid if beat else 0,
        "state": str(state),
        "weight_version": None,
        "tokens_per_s": None,
        "last_heartbeat": beat.answered + epoch if beat else 0.0,
    }


def scaled_to(run_dir: Path) -> int | None:
    """The number of rollout workers requested before the run stopped, None if none was."""
    try:
        return json.loads((run_dir / FILE).read_text())["scaled_to"]
    except (OSError, ValueError, KeyError):
        return None


def write_status(run_dir: Path, status: Mapping[str, Any]) -> None:
    """A reader sees the old file or the new one, never a part."""
    partial = run_dir / f".{FILE}.partial"
    partial.write_text(json.dumps(status, indent=1))
    os.replace(partial, run_dir / FILE)

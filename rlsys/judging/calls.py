"""The calls of a judge since a stage's last checkpoint, for stages that resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import ParseFailure

Reply = str | ParseFailure
_REASONS = {reason.value: reason for reason in ParseReason}


@dataclass(frozen=True)
class Call:
    """One call. requested: how many questions it put to the judge; replies: by key of the question,
    those that were not cached before.
    """

    requested: int
    replies: Mapping[str, Reply]


class CallLog:
    """Calls in a JSON lines file of ``folder`` per step of the stage. A resumed stage repeats its
    calls since the last checkpoint, and gets from here the replies it had, failures too: asked
    again, a question would have other company, since what was cached is left out of a call.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._calls: dict[str, Call] = {}
        self._file: TextIO | None = None

    def start(self, step: int) -> None:
        """Take up the calls made since checkpoint ``step``, and remove all others."""
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"after-{step:06d}.jsonl"
        for other in self.folder.glob("after-*.jsonl"):
            if other != path:
                other.unlink()
        truncate_incomplete_line(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        lines = path.read_text(encoding="utf-8").splitlines()
        self._calls = {key: _call(*entry) for key, *entry in map(json.loads, lines)}

    def find(self, keys: Sequence[str]) -> Call | None:
        """The call with the questions of these keys, if it was answered."""
        return self._calls.get(_digest(keys))

    def add(self, keys: Sequence[str], call: Call) -> None:
        """Write a call down, before anything else that says it was answered."""
        name = _digest(keys)
        if self._file is None or name in self._calls:
            return
        self._calls[name] = call
        replies = {k: r if isinstance(r, str) else [r.reason] for k, r in call.replies.items()}
        self._file.write(json.dumps([name, call.requested, replies]) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _call(requested: int, replies: Mapping[str, str | list[str]]) -> Call:
    return Call(
        requested,
        {
            key: reply if isinstance(reply, str) else ParseFailure(_REASONS[reply[0]])
            for key, reply in replies.items()
        },
    )


def _digest(keys: Sequence[str]) -> str:
    return hashlib.sha256("".join(keys).encode()).hexdigest()


def truncate_incomplete_line(path: Path) -> None:
    """Drop what a killed writer left of its last line."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

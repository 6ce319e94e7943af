"""A persistent cache of judge replies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rlsys.errors import DataError
from rlsys.judging.judge import Judge, Question
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import ParseFailure
from rlsys.runtime.pending import Pending


class CachedJudge:
    """Wraps a judge with a cache in JSON lines files, appended as replies arrive.

    Each process writes its own file and loads all files of the folder when it opens.
    Args: judge; path of the file; identity: hash of the model and its sampling settings, part of
    every key; image: hash of a row's pixels; wording: cache key of a prompt's text, by name.
    A ``ParseFailure`` is not cached. ``requested`` counts questions sent to the judge,
    ``cached`` those answered from the cache.
    Raises: DataError for a file that holds anything else.
    """

    def __init__(
        self,
        judge: Judge,
        path: Path,
        identity: str,
        image: Callable[[int], str],
        wording: Callable[[str], str] = str,
    ) -> None:
        self.judge, self.identity, self.image, self.wording = judge, identity, image, wording
        self.requested = self.cached = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._replies: dict[str, str | ParseFailure] = {}
        for other in sorted(path.parent.glob("*.jsonl")):
            self._replies |= _read(other)
        _truncate_incomplete_line(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def request(self, questions: Sequence[Question]) -> Pending[list[str | ParseFailure]]:
        keys = [self._key(question) for question in questions]
        new = {k: q for k, q in zip(keys, questions, strict=True) if k not in self._replies}
        self.requested += len(new)
        self.cached += len(questions) - len(new)
        if not new:
            return Pending.of([self._replies[key] for key in keys])

        def store(replies: list[str | ParseFailure]) -> list[str | ParseFailure]:
            fresh = dict(zip(new, replies, strict=True))
            for key, reply in fresh.items():
                if isinstance(reply, str) and key not in self._replies:
                    self._replies[key] = reply
                    self._file.write(json.dumps([key, reply]) + "\n")
            missing = ParseFailure(ParseReason.EMPTY)
            return [self._replies.get(key, fresh.get(key, missing)) for key in keys]

        return self.judge.request(list(new.values())).map(store)

    def close(self) -> None:
        self._file.close()

    def _key(self, question: Question) -> str:
        image = None if question.image is None else self.image(question.image)
        wording = self.wording(question.name)
        parts = [self.identity, wording, dict(question.values), image]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, str | ParseFailure]:
    """Skips an incomplete last line, left by a killed writer; any other bad line is an error."""
    lines = path.read_text(encoding="utf-8").split("\n")
    replies: dict[str, str | ParseFailure] = {}
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not (isinstance(entry, list) and [type(part) for part in entry] == [str, str]):
            raise DataError(f"{path}, line {number}: not a judgement; delete the file")
        replies[entry[0]] = entry[1]
    return replies


def _truncate_incomplete_line(path: Path) -> None:
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

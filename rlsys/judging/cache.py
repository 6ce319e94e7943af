"""Judgements are remembered: what was answered once is never asked again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rlsys.errors import DataError
from rlsys.judging.judge import Judge, Question
from rlsys.judging.parse import Unread
from rlsys.runtime.pending import Pending


class CachedJudge:
    """A judge with a memory in files of JSON lines, written as replies arrive.

    Every writer has a file of its own and reads those of all others in its folder when it opens.
    Args: judge; path of the file; identity: of the model and how it replies, so that another
    judge's replies are never taken; image: a row's image as a string that changes with its pixels;
    wording: of the prompt with a name.
    A question without a reply (``Unread``) is asked again the next time. ``asked`` and
    ``remembered`` count questions.
    Raises: DataError for a file that holds something else.
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
        self.asked = self.remembered = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, str | Unread] = {}
        for other in sorted(path.parent.glob("*.jsonl")):
            self._known |= _read(other)
        _drop_cut_line(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def ask(self, questions: Sequence[Question]) -> Pending[list[str | Unread]]:
        keys = [self._key(question) for question in questions]
        new = {k: q for k, q in zip(keys, questions, strict=True) if k not in self._known}
        self.asked += len(new)
        self.remembered += len(questions) - len(new)
        if not new:
            return Pending.of([self._known[key] for key in keys])

        def remember(replies: list[str | Unread]) -> list[str | Unread]:
            fresh = dict(zip(new, replies, strict=True))
            for key, reply in fresh.items():
                if isinstance(reply, str) and key not in self._known:
                    self._known[key] = reply
                    self._file.write(json.dumps([key, reply]) + "\n")
            return [self._known.get(key, fresh.get(key, Unread("empty"))) for key in keys]

        return self.judge.ask(list(new.values())).map(remember)

    def close(self) -> None:
        self._file.close()

    def _key(self, question: Question) -> str:
        image = None if question.image is None else self.image(question.image)
        asked = self.wording(question.name)
        parts = [self.identity, asked, dict(question.values), image]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, str | Unread]:
    """A last line cut off by the end of its writer is left out; any other odd line is an error."""
    lines = path.read_text(encoding="utf-8").split("\n")
    known: dict[str, str | Unread] = {}
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not (isinstance(entry, list) and [type(part) for part in entry] == [str, str]):
            raise DataError(f"{path}, line {number}: not a judgement; delete the file")
        known[entry[0]] = entry[1]
    return known


def _drop_cut_line(path: Path) -> None:
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

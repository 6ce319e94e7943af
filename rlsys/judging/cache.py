"""A persistent cache of judge replies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlsys.errors import DataError
from rlsys.judging.calls import Call, CallLog, Reply, truncate_incomplete_line
from rlsys.judging.judge import Judge, Question
from rlsys.runtime.pending import Pending, gather


class CachedJudge:
    """Wraps a judge with a cache in JSON lines files, appended as replies arrive.

    Each process writes its own file and loads all files of the folder when it opens.
    Args: judge; path of the file; identity: hash of the model and its sampling settings, part of
    every key; image: hash of a row's pixels; wording: cache key of a prompt's text, by name.
    A ``ParseFailure`` is not cached. A question that an earlier call has put to the judge waits for
    that call, so that the order in which replies arrive decides nothing. ``requested`` counts
    questions sent to the judge, ``cached`` the others.
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
        self.calls: CallLog | None = None
        self._replies: dict[str, Reply] = {}
        self._asked: dict[str, Pending[dict[str, Reply]]] = {}  # by key, until it has replied
        for other in sorted(path.parent.glob("*.jsonl")):
            self._replies |= _read(other)
        truncate_incomplete_line(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def request(self, questions: Sequence[Question]) -> Pending[list[Reply]]:
        keys = [self._key(question) for question in questions]
        if self.calls is not None and (call := self.calls.find(keys)) is not None:
            return Pending.of(self._finish(keys, call))
        unknown = {k: q for k, q in zip(keys, questions, strict=True) if k not in self._replies}
        earlier = dict.fromkeys(self._asked[key] for key in unknown if key in self._asked)
        new = {key: question for key, question in unknown.items() if key not in self._asked}
        asking = list(earlier)
        if new:
            asking.append(self._ask(new))
            self._asked |= dict.fromkeys(new, asking[-1])

        def finish(answered: list[dict[str, Reply]]) -> list[Reply]:
            replies = {key: reply for some in answered for key, reply in some.items()}
            return self._finish(keys, Call(len(new), {key: replies[key] for key in unknown}))

        return gather(asking).map(finish).now()

    def _ask(self, new: Mapping[str, Question]) -> Pending[dict[str, Reply]]:
        def by_key(replies: list[Reply]) -> dict[str, Reply]:
            return dict(zip(new, replies, strict=True))

        return self.judge.request(list(new.values())).map(by_key)

    def _finish(self, keys: Sequence[str], call: Call) -> list[Reply]:
        """Keep what was replied. Returns: a reply per key."""
        self.requested += call.requested
        self.cached += len(keys) - call.requested
        if self.calls is not None:
            self.calls.add(keys, call)
        for key, reply in call.replies.items():
            if isinstance(reply, str):
                self._asked.pop(key, None)
                if key not in self._replies:
                    self._replies[key] = reply
                    self._file.write(json.dumps([key, reply]) + "\n")
            elif self.calls is not None:
                self._asked[key] = Pending.of({key: reply})
            else:
                self._asked.pop(key, None)
        return [self._replies[k] if k in self._replies else call.replies[k] for k in keys]

    def log_calls(self, folder: Path, step: int) -> None:
        """For a stage that resumes: keep the calls after its checkpoint ``step`` in ``folder``, and
        take up those that are there. A question without a reply is not asked again before the next
        checkpoint.
        """
        if self.calls is None:
            self.calls = CallLog(folder)
        self.calls.start(step)
        self._asked.clear()

    def close(self) -> None:
        self._file.close()
        if self.calls is not None:
            self.calls.close()

    def _key(self, question: Question) -> str:
        image = None if question.image is None else self.image(question.image)
        wording = self.wording(question.name)
        parts = [self.identity, wording, dict(question.values), image]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Reply]:
    """Skips an incomplete last line, left by a killed writer; any other bad line is an error."""
    lines = path.read_text(encoding="utf-8").split("\n")
    replies: dict[str, Reply] = {}
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not (isinstance(entry, list) and [type(part) for part in entry] == [str, str]):
            raise DataError(f"{path}, line {number}: not a judgement; delete the file")
        replies[entry[0]] = entry[1]
    return replies

"""Named results of stages, found again by the hash of what made them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlsys.errors import ArtifactBusy

_META = "artifact.json"
# Reading of recipes, report and display decide about no result.
_NO_RESULT = ("config", "report", "display.py", "__pycache__")
PROGRESS = "progress"  # of a resumable stage, inside its folder until it is finished


@dataclass(frozen=True)
class Artifact:
    """A finished folder. ``metrics`` are what its stage reported."""

    folder: Path
    digest: str
    metrics: dict[str, Any]
    reused: bool = False


class ArtifactStore:
    """Folders under ``root``, one per (kind, config, inputs); a half-written one is never seen."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get_or_make(
        self,
        kind: str,
        config: Any,
        inputs: dict[str, str],
        make: Callable[[Path], dict[str, Any]],
        *,
        resumable: bool = False,
        owner: str = "",
    ) -> Artifact:
        """The artefact of this recipe, made by ``make(folder)`` unless it is there already.

        Args: config: plain containers; inputs: digests of the artefacts it was made from; owner:
        who makes it, for the error of another that wants it meanwhile.
        ``make`` fills the folder and returns metrics; resumable: it starts from what an earlier
        ``make`` of the same recipe left when it was stopped, else from an empty folder.
        Raises: ArtifactBusy when another process is making it.
        """
        digest = recipe_hash(kind, config, inputs)
        folder = self.root / f"{kind}-{digest[:16]}"
        if (found := _finished(folder, digest)) is not None:
            return found
        self.root.mkdir(parents=True, exist_ok=True)
        with _lock(self.root / f".{folder.name}.lock", owner):
            if (found := _finished(folder, digest)) is not None:
                return found
            partial = self.root / f".{folder.name}.partial"
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True, exist_ok=True)
            if not (partial / _META).exists():  # else it was finished, and only not yet named so
                metrics = make(partial)
                meta = {"kind": kind, "config": config, "inputs": inputs, "metrics": metrics}
                (partial / f"{_META}.tmp").write_text(json.dumps(meta, indent=1))
                os.replace(partial / f"{_META}.tmp", partial / _META)
            metrics = json.loads((partial / _META).read_text())["metrics"]
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)
        return Artifact(folder, digest, metrics)


def _finished(folder: Path, digest: str) -> Artifact | None:
    if not (folder / _META).exists():
        return None
    metrics = json.loads((folder / _META).read_text())["metrics"]
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    return Artifact(folder, digest, metrics, reused=True)


@contextmanager
def _lock(path: Path, owner: str) -> Iterator[None]:
    """Held while an artefact is made, released by the end of the process, however it ends."""
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise ArtifactBusy(
                f"{path.parent}: {stream.read() or 'another run'} is making "
                f"{path.name.removeprefix('.').removesuffix('.lock')}; wait for it, or give this "
                "run another runs_dir"
            ) from None
        stream.truncate(0)
        stream.write(f"{owner} (process {os.getpid()} on {socket.gethostname()})")
        stream.flush()
        yield


def recipe_hash(kind: str, config: Any, inputs: dict[str, str]) -> str:
    """Changes whenever the code results depend on, the kind, a key or an input changes."""
    text = json.dumps([_code_hash(), kind, config, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code_hash() -> str:
    """Of all that decides what a stage makes."""
    package = Path(__file__).parent
    parts = [part for part in package.iterdir() if part.name not in _NO_RESULT]
    total = hashlib.sha256()
    for part in sorted(parts):
        files = sorted(part.rglob("*")) if part.is_dir() else [part]
        for file in files:
            if file.suffix in (".py", ".txt"):
                total.update(file.read_bytes())
    return total.hexdigest()


def path_hash(path: Path) -> str:
    """Hash of a file, or of the names and contents of a folder's files."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        total.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()

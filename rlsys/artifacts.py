"""Results of stages, cached by the hash of code, configuration and inputs."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rlsys.errors import ArtifactBusy

_META = "artifact.json"
_RECIPE = "recipe.json"  # of what is being made
_LIBRARIES = ("torch", "transformers", "deepspeed", "peft")
# Code that does not affect any result.
_NO_RESULT = ("config", "report", "display.py", "show_data.py", "__pycache__")
PROGRESS = "progress"  # subfolder with a stage's checkpoints, removed when it is finished


@dataclass(frozen=True)
class Artifact:
    """A finished folder, with the metrics of its stage."""

    folder: Path
    digest: str
    metrics: dict[str, Any]
    reused: bool = False


@cache
def code_versions() -> dict[str, str]:
    """Hash of the code of rlsys that affects results, and versions of libraries that compute."""
    package = Path(__file__).parent
    parts = [part for part in package.iterdir() if part.name not in _NO_RESULT]
    total = hashlib.sha256()
    for part in sorted(parts):
        files = sorted(part.rglob("*")) if part.is_dir() else [part]
        for file in files:
            if file.suffix in (".py", ".txt"):
                total.update(file.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"rlsys": total.hexdigest(), **versions}


@dataclass(frozen=True)
class Recipe:
    """What an artefact is made of. owner: the run directory that began it; stage: its stage, as
    ``run/stage``; code: of rlsys and of the libraries that compute, by name.
    """

    kind: str
    config: Any
    inputs: dict[str, str]
    owner: str = ""
    stage: str = ""
    code: dict[str, str] = field(default_factory=lambda: code_versions())

    @property
    def digest(self) -> str:
        """Hash of the code that results depend on, the kind, all keys and all inputs."""
        text = json.dumps([self.code, self.kind, self.config, self.inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def changes(self, before: Recipe) -> list[str]:
        """What differs, each as "what: was, is"."""
        was, now = (
            flat({"code of ": each.code, "": each.config, "input ": each.inputs})
            for each in (before, self)
        )
        return [
            f"{key.replace(' .', ' ').removeprefix('.')}: "
            f"was {_shortened(was.get(key, 'absent'))}, is {_shortened(now.get(key, 'absent'))}"
            for key in dict.fromkeys([*was, *now])
            if json.dumps(was.get(key)) != json.dumps(now.get(key))
        ]


def _shortened(value: object) -> str:
    """A hash is known by its beginning."""
    return str(value) if len(str(value)) < 32 else f"{str(value)[:12]}..."


class ArtifactStore:
    """Folders under ``root``, one per (kind, config, inputs), each created atomically."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sweep(self, needed: Callable[[Recipe], bool] = lambda _: True) -> list[Path]:
        """Remove what stopped runs began to make and no run resumes. Returns: what was removed.

        Args: needed: whether a run may resume what has checkpoints.
        """
        removed = []
        for partial in sorted(self.root.glob(".*.partial")):
            if (partial / PROGRESS).exists() or (partial / _META).exists():
                recipe = _recipe(partial)
                if recipe is None or needed(recipe):
                    continue
            try:
                with _lock(partial.with_suffix(".lock"), "a sweep of what stopped runs left"):
                    os.replace(partial, partial.with_suffix(".dead"))  # holds the lock briefly
            except (ArtifactBusy, OSError):  # being made, or removed by another sweep
                continue
            removed.append(partial)
        for dead in self.root.glob(".*.dead"):
            shutil.rmtree(dead, ignore_errors=True)
        return removed

    def get_or_make(
        self,
        kind: str,
        config: Any,
        inputs: dict[str, str],
        make: Callable[[Path], dict[str, Any]],
        *,
        resumable: bool = False,
        owner: str = "",
        stage: str = "",
        restarts: Callable[[list[str]], None] = lambda _: None,
    ) -> Artifact:
        """The artefact of this recipe, made by ``make(folder)`` unless it exists.

        Args: config: plain containers; inputs: digests of the artefacts it was made from; owner,
        stage: as in ``Recipe``; restarts: called with what has changed, when a stopped run left
        checkpoints of this stage that are of another recipe.
        ``make`` fills the folder and returns metrics; resumable: it starts from the files of an
        earlier ``make`` of the same recipe that was stopped, else from an empty folder.
        Raises: ArtifactBusy when another process is making it.
        """
        recipe = Recipe(kind, config, inputs, owner, stage)
        digest = recipe.digest
        folder = self.root / f"{kind}-{digest[:16]}"
        if (artifact := _finished(folder, digest)) is not None:
            return artifact
        self.root.mkdir(parents=True, exist_ok=True)
        with _lock(self.root / f".{folder.name}.lock", f"run {owner}" if owner else "a run"):
            if (artifact := _finished(folder, digest)) is not None:
                return artifact
            partial = self.root / f".{folder.name}.partial"
            if resumable and not partial.exists() and (before := self._stopped(recipe)):
                restarts(recipe.changes(before))
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            (partial / PROGRESS if resumable else partial).mkdir(parents=True, exist_ok=True)
            if not (partial / _META).exists():  # else it was finished, but not yet renamed
                _write(partial / _RECIPE, asdict(recipe))
                metrics = make(partial)
                _write(partial / _META, asdict(recipe) | {"metrics": metrics})
                (partial / _RECIPE).unlink()
            metrics = json.loads((partial / _META).read_text())["metrics"]
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)
        return Artifact(folder, digest, metrics)

    def _stopped(self, recipe: Recipe) -> Recipe | None:
        """The newest recipe of which this stage has checkpoints that nobody goes on from now."""
        partials = [path.parent for path in self.root.glob(f".*.partial/{PROGRESS}")]
        for partial in sorted(partials, key=lambda path: path.stat().st_mtime, reverse=True):
            found = _recipe(partial)
            if found and recipe.stage and (found.stage, found.kind) == (recipe.stage, recipe.kind):
                with suppress(ArtifactBusy), _lock(partial.with_suffix(".lock"), "a check of it"):
                    return found
        return None


def _recipe(partial: Path) -> Recipe | None:
    """None where there is none that can be read."""
    try:
        return Recipe(**json.loads((partial / _RECIPE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, content: object) -> None:
    """As JSON, whole or not at all."""
    path.with_suffix(".tmp").write_text(json.dumps(content, indent=1))
    os.replace(path.with_suffix(".tmp"), path)


def _finished(folder: Path, digest: str) -> Artifact | None:
    if not (folder / _META).exists():
        return None
    metrics = json.loads((folder / _META).read_text())["metrics"]
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    return Artifact(folder, digest, metrics, reused=True)


@contextmanager
def _lock(path: Path, owner: str) -> Iterator[None]:
    """Held while an artefact is made; released when the process ends, however it ends."""
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


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    return {
        key: value
        for name, part in node.items()
        for key, value in flat(part, f"{prefix}{name}.").items()
    }


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder, followlinks=True):
        yield from (Path(root) / name for name in names)


def path_hash(path: Path) -> str:
    """Hash of a file, or of the names and contents of a folder's files, links followed."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(_files(path))
    for file in files:
        total.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()

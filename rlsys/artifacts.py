"""Named results of stages, found again by the hash of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_META = "artifact.json"
PROGRESS = "progress"  # of a resumable stage, inside its folder until it is finished


@dataclass(frozen=True)
class Artifact:
    """A finished folder. ``metrics`` are what its stage reported."""

    folder: Path
    digest: str
    metrics: dict[str, Any]
    reused: bool = False


class ArtifactStore:
    """Folders under ``root``, one per (kind, config, inputs); a half-written one is never seen.

    ``code``: files and folders outside rlsys whose code decides about results too.
    """

    def __init__(self, root: Path, code: tuple[Path, ...] = ()) -> None:
        self.root, self.code = root, code

    def get_or_make(
        self,
        kind: str,
        config: Any,
        inputs: dict[str, str],
        make: Callable[[Path], dict[str, Any]],
        *,
        resumable: bool = False,
    ) -> Artifact:
        """The artefact of this recipe, made by ``make(folder)`` unless it is there already.

        Args: config: plain containers; inputs: digests of the artefacts it was made from.
        ``make`` fills the folder and returns metrics; resumable: it starts from what an earlier
        ``make`` of the same recipe left when it was stopped, else from an empty folder.
        """
        digest = recipe_hash(kind, config, inputs, self.code)
        folder = self.root / f"{kind}-{digest[:16]}"
        if (folder / _META).exists():
            metrics = json.loads((folder / _META).read_text())["metrics"]
            shutil.rmtree(folder / PROGRESS, ignore_errors=True)
            return Artifact(folder, digest, metrics, reused=True)
        partial = self.root / f".{kind}-{digest[:16]}.{'partial' if resumable else os.getpid()}"
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=resumable)
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


def recipe_hash(kind: str, config: Any, inputs: dict[str, str], code: tuple[Path, ...] = ()) -> str:
    """Changes whenever the code results depend on, the kind, a key or an input changes."""
    text = json.dumps([_code_hash(code), kind, config, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code_hash(also: tuple[Path, ...]) -> str:
    """Of all that decides what a stage makes: rlsys but its report and the reading of recipes."""
    package = Path(__file__).parent
    parts = [part for part in package.iterdir() if part.name not in ("config", "report")]
    total = hashlib.sha256()
    for part in sorted([*parts, *also]):
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

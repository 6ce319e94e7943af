"""Checkpoints: folders written atomically, with a manifest of their files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlsys.errors import DataError

MANIFEST = "manifest.json"


def save_checkpoint(
    root: Path,
    iteration: int,
    driver: Mapping[str, Any],
    save_roles: Callable[[Path], None],
    keep: int,
) -> Path:
    """Write ``root/iteration-000012``: the driver's state and the files of ``save_roles``.

    The folder gets its name only when everything, manifest included, is on disk; then all but the
    newest ``keep`` are removed.
    """
    folder = root / f"iteration-{iteration:06d}"
    partial = folder.with_name("." + folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_roles(partial)
    files = {str(p.relative_to(partial)): _digest(p) for p in partial.rglob("*") if p.is_file()}
    manifest = {"iteration": iteration, "driver": dict(driver), "files": files}
    with (partial / MANIFEST).open("w") as stream:
        json.dump(manifest, stream, indent=1, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    for old in saved_checkpoints(root)[:-keep]:
        shutil.rmtree(old)
    return folder


def saved_checkpoints(root: Path) -> list[Path]:
    """Folders of all checkpoints, oldest first."""
    return sorted(root.glob("iteration-*"))


def saved_state(folder: Path) -> dict[str, Any]:
    """The driver's state, files unread; empty if there is no manifest or a torn one."""
    try:
        return dict(_manifest(folder)["driver"])
    except DataError:
        return {}


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The driver's state. Raises: DataError naming a file that is absent or has changed."""
    manifest = _manifest(folder)
    for name, digest in manifest["files"].items():
        file = folder / name
        if not file.exists() or _digest(file) != digest:
            raise DataError(f"{file}: missing or changed since the checkpoint was written")
    return dict(manifest["driver"])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(f"{folder}: no checkpoint there ({MANIFEST} is missing)")
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise DataError(f"{path}: not a manifest ({error})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

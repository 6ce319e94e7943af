"""The kinds of artefact that a key may name with its ``ref``, and that a stage kind makes."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.guard.flags import FILE as FLAGS_FILE
from rlsys.models.load import HEAD_FILE
from rlsys.registries import by_name


@dataclass(frozen=True)
class ArtifactKind:
    """files: what a folder on disk must hold to stand for a stage that makes this kind; model: it
    is one, with a tokenizer and a configuration; hub: a model on the hub may stand for it too;
    on_disk: whether anything outside of the recipe may.
    """

    name: str
    files: tuple[str, ...] = ()
    model: bool = False
    hub: bool = False
    on_disk: bool = True


_SCORER = ("config.json", HEAD_FILE)
_KINDS = (
    ArtifactKind("policy", ("config.json",), model=True, hub=True),
    ArtifactKind("reward", _SCORER, model=True),
    ArtifactKind("cost", _SCORER, model=True),
    ArtifactKind("guard", _SCORER, model=True),
    ArtifactKind("filter", (FLAGS_FILE,)),
    ArtifactKind("conversations"),
    ArtifactKind("judge", on_disk=False),
)
ARTIFACT_KINDS = by_name("kind of artefact", ((kind.name, kind) for kind in _KINDS))

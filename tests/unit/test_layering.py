"""Who may know whom."""

import ast
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import rlsys
from rlsys import torchvision_shim as shim

ROOT = Path(rlsys.__file__).parents[1]
LIBRARY = sorted((ROOT / "rlsys").rglob("*.py"))
WORLD = ROOT / "rlsys" / "data" / "riskworld"


def imported(file: Path) -> set[str]:
    """Absolute names of everything a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(file)}


def test_the_library_knows_neither_ray_nor_actors() -> None:
    assert len(LIBRARY) > 30
    guilty = {str(f): r for f in LIBRARY if (r := roots(f) & {"ray", "actors", "tests"})}
    assert guilty == {}


def test_the_actors_do_know_ray() -> None:
    """The rule above is about something."""
    assert any("ray" in roots(file) for file in (ROOT / "actors").rglob("*.py"))


def test_only_engines_know_vllm() -> None:
    knowing = {file.relative_to(ROOT).as_posix() for file in LIBRARY if "vllm" in roots(file)}
    assert knowing == {f"rlsys/engines/{name}.py" for name in ("judge", "rollout", "stepped")}


def test_formulas_and_drivers_know_no_engine() -> None:
    for folder in ("algorithms", "drivers"):
        for file in (ROOT / "rlsys" / folder).glob("*.py"):
            names = imported(file)
            assert not [n for n in names if n.startswith(("rlsys.engines", "rlsys.models"))], file


def test_the_built_in_world_is_known_in_one_place() -> None:
    code = [
        file
        for folder in ("rlsys", "actors", "benchmarks", "cluster", "examples")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".yaml", ".sh", ".j2"} and not file.is_relative_to(WORLD)
    ]
    mentioning = {file.relative_to(ROOT).as_posix() for file in code if "riskworld" in
                  file.read_text().lower()}  # fmt: skip
    assert mentioning == {"rlsys/data/worlds.py"}


def test_recipes_and_drivers_start_without_ray_or_an_engine() -> None:
    heavy = ["ray", "vllm", "deepspeed", "wandb", "datasets"]
    code = (
        "import json, sys\n"
        "import rlsys.drivers.safe_rlhf\n"
        "driver = sorted(sys.modules)\n"
        "import rlsys.config.load\n"
        "print(json.dumps([driver, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for modules in json.loads(done.stdout.splitlines()[-1]):
        assert "rlsys.drivers.safe_rlhf" in modules
        assert [name for name in heavy if name in modules] == []


def test_what_is_read_beside_the_code_is_installed_with_it() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["rlsys"]
    installed = {file for pattern in patterns for file in (ROOT / "rlsys").glob(pattern)}
    beside = {f for f in (ROOT / "rlsys").rglob("*") if f.is_file() and ".py" not in f.suffix}
    assert beside - installed == set()


# the torchvision shim


@pytest.mark.parametrize(
    ("torch", "torchvision", "expected"),
    [
        ("2.13.0+cpu", "0.28.0", True),
        ("2.13.0+cpu", "0.28.0+cu130", True),
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0", "0.28.0", False),
        ("2.13.0+cu130", "0.28.0+cu130", False),
        ("2.13.0+cpu", None, False),
        (None, "0.28.0", False),
    ],
)
def test_the_shim_is_needed_for_a_cpu_torch_beside_another_torchvision(
    torch: str | None, torchvision: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"torch": torch, "torchvision": torchvision}

    def version(name: str) -> str:
        if (found := installed[name]) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert shim.needed() is expected


@pytest.fixture
def bare_path(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """sys.meta_path as a fresh interpreter has it; the real one comes back afterwards."""
    own = (shim._OperatorFinder, shim._HidingPathFinder, PathFinder)
    finders: list[object] = [f for f in sys.meta_path if f not in own]
    finders.append(PathFinder)
    monkeypatch.setattr(sys, "meta_path", finders)
    return finders


def test_activating_twice_is_activating_once(
    bare_path: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "needed", lambda: True)
    others = bare_path[:-1]
    shim.activate()
    once = list(sys.meta_path)
    assert once == [*others, shim._OperatorFinder, shim._HidingPathFinder]
    shim.activate()
    assert sys.meta_path == once


def test_where_the_shim_is_not_needed_nothing_changes(
    bare_path: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "needed", lambda: False)
    before = list(bare_path)
    shim.activate()
    assert sys.meta_path == before


def test_the_shim_hides_broken_packages_and_nothing_else() -> None:
    for name in (*shim.HIDDEN, "torchaudio.functional"):
        assert shim._HidingPathFinder.find_spec(name) is None
    assert shim._HidingPathFinder.find_spec("json") is not None

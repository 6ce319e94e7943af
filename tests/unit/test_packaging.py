"""What pyproject.toml declares, against what the code imports and what is installed with it."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rlsys

ROOT = Path(rlsys.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = {"rlsys", "actors", "tests", "benchmarks"}
DISTRIBUTIONS = packages_distributions()


ELSEWHERE = {"trl"}  # benchmarks/bench_trl.py runs in an environment of its own


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def roots(file: Path) -> set[str]:
    """Top-level names of everything a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - OWN - ELSEWHERE


def undeclared(folder: str, declared: set[str]) -> dict[str, list[str]]:
    """Third-party packages no declared distribution provides, each with the files importing it."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        for root in roots(file):
            providers = {canonicalize_name(name) for name in DISTRIBUTIONS.get(root, [])}
            if not providers & declared:
                found.setdefault(root, []).append(file.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize("folder", ["rlsys", "actors"])
def test_every_import_of_the_package_is_declared(folder: str) -> None:
    declared = names([*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["gpu"]])
    assert undeclared(folder, declared) == {}


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_every_import_of_what_is_around_it_is_declared_for_development(folder: str) -> None:
    declared = names([*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["dev"]])
    assert undeclared(folder, declared) == {}


def test_an_import_nobody_declares_is_found() -> None:
    assert set(undeclared("rlsys", names(PROJECT["dependencies"]))) == {"vllm"}


def test_the_tested_set_pins_a_version_every_requirement_allows() -> None:
    lines = (ROOT / "requirements/cpu.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {
        canonicalize_name(pin.name): spec.version for pin in pinned for spec in pin.specifier
    }
    assert len(versions) == len(pinned), "one version of each"
    declared = [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["dev"]]
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        if name != "torch":  # installed before the others: see the Makefile
            assert name in versions, f"{requirement} has no pin"
            assert requirement.specifier.contains(versions[name]), (
                f"{requirement}: {versions[name]}"
            )

"""Do the unit tests notice a fault? Each of benchmarks/mutants.yaml is put into a copy of the code.

python benchmarks/mutants.py [NAME ...]

A name is that of a fault; without one all are tried and benchmarks/mutants.md is written. The
unit tests that should notice run up to the first that fails. First they run without a fault: a
test that fails anyway notices nothing. Exits with 1 when a fault survives.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

ROOT = Path(__file__).parents[1]
FAULTS = ROOT / "benchmarks" / "mutants.yaml"
TABLE = ROOT / "benchmarks" / "mutants.md"
OWN = ("rlsys", "actors", "tests")
COPIED = (*OWN, "configs", "pyproject.toml")
# Imported once, for the libraries that they import; the process of a fault is forked with those.
PRELOADED = ("tests.unit.conftest", "rlsys.config.check", "pytest_timeout")
LEFT_OUT = (
    # a time, which says nothing on a machine that is busy
    "test_driver.py::test_the_driver_runs_in_milliseconds_and_touches_no_process",
    # a generated page, which is not copied and would differ with every other range
    "test_config_keys.py::test_the_documentation_is_what_the_code_says",
)
TIMEOUT = 120  # seconds per test: a fault can make a loop endless


@dataclass(frozen=True)
class Mutant:
    """A fault in one place. tests: paths below the root."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(eq=False)  # pytest keeps plugins in sets
class Watch:
    """A pytest plugin. failed: the first test that failed, or a file that could not be read."""

    failed: str = ""
    broken: str = ""
    passed: list[str] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid
        elif report.when == "call":
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = self.broken or report.nodeid


def main() -> None:
    mutants = load()
    wanted = set(sys.argv[1:])
    if unknown := wanted - {each.name for each in mutants}:
        sys.exit(f"no fault is called {', '.join(sorted(unknown))}")
    chosen = [each for each in mutants if each.name in wanted or not wanted]
    sys.path.insert(0, str(ROOT))
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in COPIED:
            copy_part(ROOT / part, copy / part)
        rows: dict[Mutant, str] = {}
        for each in chosen:
            check_sound(copy, each.tests)
            with applied(each, copy):
                rows[each] = noticed(copy, each.tests)
            print(f"{each.name:24} {rows[each] or 'SURVIVED'}", flush=True)
    survivors = [each.name for each, found in rows.items() if not found]
    print(
        f"{len(rows) - len(survivors)} of {len(rows)} noticed; not: {', '.join(survivors) or '-'}"
    )
    if not wanted:
        TABLE.write_text("\n".join(page(rows)) + "\n")
    sys.exit(1 if survivors else 0)


def load() -> list[Mutant]:
    """Every fault of the list. Raises: SystemExit naming one whose text is not there once."""
    mutants: list[Mutant] = []
    for file, entry in yaml.safe_load(FAULTS.read_text()).items():
        tests = tuple(_test_path(name) for name in entry["tests"])
        text = (ROOT / file).read_text()
        for name, (old, new) in entry["faults"].items():
            if name in {each.name for each in mutants}:
                sys.exit(f"{name}: two faults have this name")
            if (count := text.count(old)) != 1:
                sys.exit(f"{name}: {old!r} is {count} times in {file}, once is needed")
            mutants.append(Mutant(name, file, old, new, tests))
    return mutants


def _test_path(name: str) -> str:
    """encoder, families/features, or updates.py::test_one."""
    folder, slash, file = name.rpartition("/")
    return f"tests/unit/{folder}{slash}test_{file if '::' in file else file + '.py'}"


def copy_part(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@cache
def check_sound(copy: Path, tests: tuple[str, ...]) -> None:
    """Raises: SystemExit naming a test that fails without a fault."""
    if found := noticed(copy, tests):
        sys.exit(f"{found} fails without a fault")


@contextmanager
def applied(mutant: Mutant, copy: Path) -> Iterator[None]:
    """The fault in the copy, and after that the file as it was."""
    path = copy / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        path.write_text(text)


def noticed(copy: Path, tests: tuple[str, ...]) -> str:
    """The first of these tests that fails in the copy, empty for none.

    Raises: RuntimeError when the tests cannot be read: such a fault says nothing about them.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_tests, args=(copy, tests, theirs))
    process.start()
    theirs.close()
    try:
        failed, broken, passed = ours.recv()
    except EOFError:
        failed, broken, passed = "(the process died)", "", 0
    process.join()
    if broken or not (failed or passed):
        raise RuntimeError(f"cannot run {broken or ', '.join(tests)}")
    return str(failed)


def run_tests(copy: Path, tests: tuple[str, ...], result: Connection) -> None:
    """In a process of its own: the code of the copy, and nothing compiled from another fault."""
    os.chdir(copy)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    for name in [each for each in sys.modules if each.split(".")[0] in OWN]:
        del sys.modules[name]
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # looking for plugins takes seconds
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    watch = Watch()
    # Plugins that a library has imported already are none whose asserts matter.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    options = ["-x", "-q", f"--timeout={TIMEOUT}", "-p", "pytest_timeout", *quiet]
    options += [f"--deselect=tests/unit/{name}" for name in LEFT_OUT]
    settings.register_profile("faults", deadline=None, derandomize=True)
    settings.load_profile("faults")
    pytest.main([*options, *tests], plugins=[watch])
    result.send((watch.failed, watch.broken, len(watch.passed)))


def page(rows: dict[Mutant, str]) -> list[str]:
    killed = sum(map(bool, rows.values()))
    return [
        "# Faults that the unit tests notice",
        "",
        f"{killed} of {len(rows)}, {date.today():%Y-%m-%d}; `python benchmarks/mutants.py` puts "
        "each fault of `mutants.yaml` into a copy of the code.",
        "",
        "| fault | file | first test that fails |",
        "|---|---|---|",
        *(f"| {m.name} | {m.file} | {cell(found)} |" for m, found in rows.items()),
    ]


def cell(found: str) -> str:
    """A test's name without its parameters, which may hold a table's characters."""
    if not found:
        return "**survived**"
    path, _, name = found.partition("::")
    return f"{Path(path).stem}: {name.split('[')[0]}" if name else found


if __name__ == "__main__":
    main()

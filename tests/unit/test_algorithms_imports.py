"""The formulas stand alone, and each says where it comes from."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rlsys.algorithms as package

MODULES = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
HEAVY = ["transformers", "vllm", "ray", "deepspeed", "omegaconf"]
CITATION = re.compile(r"arXiv\s+\d{4}\.\d{5}|[A-Z][a-z]+\b[^.]*\((19|20)\d\d\)")
# Bookkeeping and textbook statistics: no paper to name.
PLAIN = {
    "at_temperature",
    "balanced_accuracy",
    "calibrate_threshold",
    "forbid",
    "length_mask",
    "logprob_gap",
    "macro_f1",
    "masked_mean",
    "masked_std",
    "masked_sum",
    "rank_auc",
    "recall_by_class",
    "split_logits",
    "ranking_accuracy",
    "token_logprobs",
}


def public_functions() -> dict[str, Callable[..., object]]:
    found = {}
    for name in MODULES:
        for key, member in inspect.getmembers(importlib.import_module(name), inspect.isfunction):
            if member.__module__ == name and not key.startswith("_"):
                found[key] = member
    return found


def test_importing_the_formulas_loads_no_engine() -> None:
    code = (
        "import importlib, json, sys\n"
        f"for name in {['rlsys.algorithms', *MODULES]!r}: importlib.import_module(name)\n"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    root = Path(package.__path__[0]).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_formula_module_imports_torch_and_its_siblings_only(name: str) -> None:
    module = importlib.import_module(name)
    roots = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            roots |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            roots.add(node.module)
    foreign = {
        root
        for root in roots
        if root.split(".")[0] not in sys.stdlib_module_names | {"torch"}
        and not root.startswith(f"{package.__name__}.")
    }
    assert foreign == set()


def test_every_paper_formula_names_its_paper() -> None:
    functions = public_functions()
    assert set(functions) >= PLAIN
    silent = [n for n, f in functions.items() if not CITATION.search(inspect.getdoc(f) or "")]
    assert set(silent) <= PLAIN


def test_every_public_function_is_documented_and_typed() -> None:
    for name, function in public_functions().items():
        signature = inspect.signature(function)
        assert function.__doc__, name
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, name

"""The arguments of ``vllm.LLM`` that ``engine.extra`` may set: those that rlsys leaves alone."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rlsys.errors import ConfigError

_FOLDER = "the folder of the model decides"
_IMAGES = "the model's own processor decides, which counts the tokens of an image"
_ALWAYS = "rlsys always sets it"
# Argument -> what sets it instead.
REFUSED = {
    "dtype": "set the recipe's dtype",
    "seed": "set the recipe's seed; every request has its own",
    "max_model_len": "set max_model_len beside extra",
    "max_num_seqs": "set max_num_seqs beside extra",
    "kv_cache_memory_bytes": "set kv_cache_mib beside extra",
    "gpu_memory_utilization": "set gpu_memory_utilization beside extra",
    "trust_remote_code": "rlsys runs no code of a model's folder",
    **dict.fromkeys(
        (
            "model", "model_weights", "served_model_name", "revision", "code_revision",
            "tokenizer", "tokenizer_mode", "tokenizer_revision", "skip_tokenizer_init",
            "hf_config_path", "hf_overrides", "hf_token", "config_format", "model_class_overrides",
            "runner", "convert",
        ),
        _FOLDER,
    ),
    **dict.fromkeys(
        (
            "limit_mm_per_prompt", "mm_processor_kwargs", "mm_processor_cache_gb",
            "language_model_only", "mm_encoder_only", "video_pruning_rate",
        ),
        _IMAGES,
    ),
    **dict.fromkeys(("logprobs_mode", "disable_log_stats", "weight_transfer_config"), _ALWAYS),
}  # fmt: skip


def check_arguments(names: Iterable[str], taken: Iterable[str] = (), where: str = "extra") -> None:
    """Raises: ConfigError for an argument that rlsys sets itself, or that vLLM does not have; the
    latter only where vLLM is installed. Args: taken: more that are set, on this machine.
    """
    known = _known_arguments()
    refused = dict.fromkeys(taken, "rlsys sets it on this kind of machine") | REFUSED
    for name in names:
        if name in refused:
            raise ConfigError(f"{where}.{name}: cannot be set here: {refused[name]}")
        if known and name not in known:
            raise ConfigError(f"{where}.{name}: vLLM's EngineArgs have no such argument")


@cache
def _known_arguments() -> frozenset[str]:
    """The fields of vLLM's EngineArgs, read from its source: importing vLLM takes seconds, and sets
    the threads of this process. Empty where vLLM is not installed.
    """
    found = find_spec("vllm")
    folders = (found.submodule_search_locations or []) if found else []
    for path in (Path(folder, "engine", "arg_utils.py") for folder in folders):
        if path.is_file():
            return _fields(path.read_text(encoding="utf-8"), "EngineArgs")
    return frozenset()


def _fields(source: str, name: str) -> frozenset[str]:
    """The annotated public names of a class."""
    classes = [each for each in ast.parse(source).body if isinstance(each, ast.ClassDef)]
    fields = [
        part.target.id
        for each in classes
        if each.name == name
        for part in each.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]
    return frozenset(field for field in fields if not field.startswith("_"))

"""Checks of a recipe's rows against its stages, before any process starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rlsys.config.artifact_kinds import ARTIFACT_KINDS
from rlsys.config.keys import key_infos
from rlsys.config.references import references
from rlsys.config.schema import TINY
from rlsys.data.fit import special_rows, unfit_rows
from rlsys.data.prepare import Datasets
from rlsys.data.rows import Prompt, Rows
from rlsys.models.hub import is_hub_name, model_folder
from rlsys.models.load import load_processor, structure_tokens
from rlsys.models.tiny import SPECIAL_TOKENS, tiny_processor
from rlsys.stages.registry import STAGES


def check_data(data: Datasets) -> None:
    """Leave out rows whose text spells a special token of a model that reads them, and those that
    its prompts cannot hold (``unfit_rows``); then what each stage kind checks.

    Of a model made from scratch the tokenizer is trained here first, on what its stage will train
    it on, unless another stage makes conversations for it.
    Raises: ConfigError naming the key; DataError where too few rows are left.
    """
    for (model, split), rows in _rows_of_models(data).items():
        data.leave_out(split, special_rows(rows, _special_tokens(model)))
    limit = data.config.data.max_prompt_tokens
    read = _rows_of_models(data)
    processors = {model: _processor(model, data) for model in {model for model, _ in read}}
    for (model, split), rows in read.items():
        data.leave_out(split, unfit_rows(processors[model], rows, limit))
    for name, stage in data.config.stages.items():
        STAGES[stage.kind].check_data(name, stage, data)


def _rows_of_models(data: Datasets) -> dict[tuple[str, str], Rows[Prompt]]:
    """(model, split) -> its rows, each once: one kind of row may lack what another has."""
    found: dict[tuple[str, str], dict[str, Prompt]] = {}
    for name, read in data.reads:
        rows = {row.id: row for row in data.rows(read.split, read.kind, read.target).rows}
        for model in sorted(model_roots(data.config.stages, name)):
            found.setdefault((model, read.split), {}).update(rows)
    return {key: Rows(list(rows.values())) for key, rows in found.items()}


def model_roots(stages: Mapping[str, Any], name: str) -> set[str]:
    """The folders with a tokenizer that a stage's models descend from, and ``tiny/STAGE`` for the
    one that a stage makes from scratch.
    """
    stage = stages[name]
    roots = {f"{TINY}/{name}"} if getattr(stage, "init", "") == TINY else set[str]()
    for key, source in references(stage).items():
        earlier = source.partition("/")[0]
        info = key_infos(stage)[key.partition(".")[0]]
        if info.quotes or not ARTIFACT_KINDS[info.ref].model:
            continue
        if earlier in stages:
            roots |= model_roots(stages, earlier)
        elif is_hub_name(source) or (Path(source) / "tokenizer_config.json").is_file():
            roots.add(source)
    return roots


def _special_tokens(model: str) -> tuple[str, ...]:
    if model.startswith(f"{TINY}/"):
        return tuple(SPECIAL_TOKENS)
    return tuple(structure_tokens(_loaded(model)))


def _processor(model: str, data: Datasets) -> Any:
    kind, _, stage = model.partition("/")
    if kind == TINY:
        return tiny_processor(data.texts(), data.config.stages[stage].tiny)
    return _loaded(model)


@cache
def _loaded(model: str) -> Any:
    return load_processor(str(model_folder(model)))

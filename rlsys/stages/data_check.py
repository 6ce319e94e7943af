"""Checks of a recipe's rows against its stages, before any process starts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from rlsys.config.references import references
from rlsys.data.encoder import check_questions
from rlsys.data.prepare import Datasets
from rlsys.models.load import load_processor
from rlsys.stages.registry import STAGES

ENCODE_QUESTIONS = ("init", "policy", "policies", "reward", "cost", "guard")
"""Keys that name a model whose input is the question itself; a judge's prompts quote it."""


def check_data(data: Datasets) -> None:
    """Run the check of each stage kind, then check questions with the tokenizers on disk.

    Raises: ConfigError naming the key, DataError naming the row.
    """
    for name, stage in data.config.stages.items():
        STAGES[stage.kind].check_data(name, stage, data)
    tokenizer = cache(_tokenizer)
    for name, read in data.reads:
        for folder in _models_on_disk(data, name):
            rows = data.rows(read.split, read.kind, read.target)
            check_questions(rows, tokenizer(folder))


def _models_on_disk(data: Datasets, name: str) -> list[str]:
    """Folders with a tokenizer that a stage names; an earlier stage's result does not exist yet."""
    stages = data.config.stages
    return [
        source
        for key, source in references(stages[name]).items()
        if key.partition(".")[0] in ENCODE_QUESTIONS
        and source.partition("/")[0] not in stages
        and (Path(source) / "tokenizer_config.json").is_file()
    ]


def _tokenizer(folder: str) -> Any:
    return load_processor(folder).tokenizer

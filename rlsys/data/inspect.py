"""What a dataset holds, split by split, as it would be read for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rlsys.data.conversation_counts import count_label, describe
from rlsys.data.fit import prompt_lengths, special_rows
from rlsys.data.layouts.registry import layout_of
from rlsys.data.llava import load_conversations
from rlsys.data.prepare import names_folder
from rlsys.data.rejections import Reason, labelled
from rlsys.data.rows import Demonstration, Prompt, RankedPair, Rows
from rlsys.data.slice import RowKind, load_rows
from rlsys.data.tables import Reading, open_table, split_names
from rlsys.errors import DataError
from rlsys.models.load import structure_tokens

NONE = "none"


@dataclass(frozen=True)
class Split:
    """layout: its name; rows: of the kind with most columns; kinds: usable rows read as each kind
    there is; facts: label -> text; rejected: counts by label; error: why it cannot be read.
    """

    name: str
    layout: str = ""
    rows: Rows[Prompt] = field(default_factory=lambda: Rows[Prompt]([]))
    kinds: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    error: str = ""


def inspect(source: str, reading: Reading, processor: Any = None) -> list[Split]:
    """Args: source: a folder, a file, or a name on a hub; processor: of the model whose tokens are
    counted (None: characters).
    Raises: DataError where there is no such source, or no split of it can be read.
    """
    if not Path(source).exists() and names_folder(source):
        raise DataError(f"{source}: no such folder or file")
    names = split_names(source, reading)
    splits = [_inspected(source, name, reading, processor) for name in names]
    if all(split.error for split in splits):
        raise DataError(splits[0].error if splits else f"{source}: no data file in it")
    return splits


def _inspected(source: str, name: str, reading: Reading, processor: Any) -> Split:
    try:
        table = open_table(source, name, reading)
        layout = layout_of(f"{source} [{name}]", table.columns, reading.layout).name
        kinds = {RowKind.PROMPTS: load_rows(source, name, RowKind.PROMPTS, "", reading)}
    except DataError as error:
        return Split(name, error=str(error))
    for kind in (RowKind.DEMONSTRATIONS, RowKind.RANKED, RowKind.PAIRS):
        try:
            kinds[kind] = load_rows(source, name, kind, "more_helpful", reading)
        except DataError:  # it has no such columns, or no usable row of this kind
            continue
    rows = list(kinds.values())[-1]
    facts, faults = _facts(rows, processor)
    rejected = rows.without(faults).rejected
    counts = {kind.value: len(found) for kind, found in kinds.items()}
    return Split(name, layout, rows, counts, facts, labelled(rejected))


def _facts(rows: Rows[Prompt], processor: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Facts by label, and ids of rows that the model cannot read with the reason."""
    sizes, faults = _sizes(rows)
    facts = {"images": _image_facts(rows, sizes)}
    unit = "characters"
    questions = [len(row.question) for row in rows.rows]
    answers = [len(answer) for row in rows.rows for answer in answers_of(row).values()]
    if processor is not None:
        unit = "tokens"
        faults = special_rows(rows, structure_tokens(processor)) | faults
        fit = rows.without(faults)
        lengths = prompt_lengths(processor, fit)
        questions = [length for length in lengths if isinstance(length, int)]
        texts = [answer for row in fit.rows for answer in answers_of(row).values()]
        answers = [len(ids) for ids in processor.tokenizer(texts)["input_ids"]] if texts else []
    facts[f"prompt, {unit}"] = spread(questions)
    facts[f"answer, {unit}"] = spread(answers)
    later = sum(bool(row.history) for row in rows.rows)
    return facts | ({"later turns": str(later)} if later else {}), faults


def _sizes(rows: Rows[Prompt]) -> tuple[list[tuple[int, int]], dict[str, str]]:
    sizes, faults = [], {}
    for row in rows.rows:
        try:
            sizes += row.image_sizes()
        except DataError:
            faults[row.id] = f"image/{Reason.UNREADABLE}"
    return sizes, faults


def _image_facts(rows: Rows[Prompt], sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return NONE
    widths, heights = zip(*sizes, strict=True)
    without = sum(row.image is None for row in rows.rows)
    return (
        f"{len(sizes)} ({without} rows without); width {spread(widths)}; "
        f"height {spread(heights)} pixels"
    )


def answers_of(row: Prompt) -> dict[str, str]:
    """A row's answers by what they are called."""
    if isinstance(row, RankedPair):
        marks = [
            ", ".join(word for word, best in (("more helpful", row.more_helpful),
                                              ("safer", row.safer)) if best == number)
            for number in (0, 1)
        ]  # fmt: skip
        names = [f"response {number + 1}" + f" ({marks[number]})" * bool(marks[number])
                 for number in (0, 1)]  # fmt: skip
        return dict(zip(names, row.responses, strict=True))
    return {"answer": row.answer} if isinstance(row, Demonstration) else {}


def spread(numbers: Sequence[int]) -> str:
    """ "3 to 90, median 12"."""
    if not numbers:
        return NONE
    return f"{min(numbers)} to {max(numbers)}, median {median(numbers):g}"


def conversation_counts(source: str, layout: str) -> dict[str, dict[str, int]]:
    """Counts of one file of conversations by heading, as labels; empty for other sources."""
    path = Path(source)
    if layout != "llava" or path.suffix not in (".json", ".jsonl") or not path.is_file():
        return {}
    return {
        heading.label: {count_label(heading, name): count for name, count in counts.items()}
        for heading, counts in describe(load_conversations(path).rows).items()
    }

"""A key of a recipe: its default, documentation and range."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING

from rlsys.errors import ConfigError

REQUIRED = "required"  # stands for the default of a key without one
BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("at least", operator.ge),
    "gt": (">", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("<", operator.lt),
    "multiple_of": ("a multiple of", lambda value, of: value % of == 0),
}
"""Name of a bound -> how it is written, and whether a value meets it."""


@dataclass(frozen=True)
class KeyInfo:
    """Documentation and allowed values of a key.

    bounds: (name in ``BOUNDS``, number), for each number in the value; choices: for each
    string in it; ref: the kind of artefact that it names; quotes: prompts of the model that it
    names quote the rows' text, which may then spell special tokens; affects_result: whether a stage
    with another value makes another artefact; trains: of a TrainConfig, the keys that name the
    models which start what it trains, those of them that the stage has.
    """

    doc: str
    bounds: tuple[tuple[str, float], ...] = ()
    choices: tuple[str, ...] = ()
    ref: str = ""
    quotes: bool = False
    affects_result: bool = True
    trains: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """As a phrase after "must be"; empty without restriction."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return " and ".join(f"{BOUNDS[name][0]} {bound}" for name, bound in self.bounds)

    def check(self, name: str, value: object) -> None:
        """Raises: ConfigError naming the key, the value and what is allowed."""
        if isinstance(value, dict):
            for part, each in value.items():
                self.check(f"{name}.{part}", each)
        elif isinstance(value, list):
            for index, each in enumerate(value):
                self.check(f"{name}[{index}]", each)
        elif isinstance(value, str):
            if self.choices and value not in self.choices:
                raise ConfigError(f"{name}: must be {self.range}, got {value!r}")
        elif isinstance(value, int | float) and not (math.isfinite(value) and self._meets(value)):
            raise ConfigError(f"{name}: must be {self.range or 'a finite number'}, got {value}")

    def _meets(self, value: float) -> bool:
        return all(BOUNDS[name][1](value, bound) for name, bound in self.bounds)


def key(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: int | None = None,
    choices: tuple[str, ...] = (),
    ref: str = "",
    quotes: bool = False,
    affects_result: bool = True,
    trains: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with documentation and allowed values.

    Args: default: copied if it is mutable; MISSING where a recipe must give a value;
    ge, gt, le, lt, multiple_of: bounds of each number; choices: allowed values of each string;
    ref: the kind of artefact it names (``rlsys.config.artifact_kinds``); quotes, affects_result,
    trains: as in KeyInfo.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "multiple_of": multiple_of}
    bounds = tuple((name, bound) for name, bound in limits.items() if bound is not None)
    metadata = {"key": KeyInfo(doc, bounds, choices, ref, quotes, affects_result, trains)}
    if is_dataclass(default) or isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def key_infos(cls: Any) -> dict[str, KeyInfo]:
    """The KeyInfo of every field of a dataclass, or of an instance of one."""
    return {each.name: each.metadata["key"] for each in fields(cls)}


def result_settings(config: Any) -> dict[str, Any]:
    """The keys of a dataclass that affect results, as plain containers."""
    settings: dict[str, Any] = {}
    for name, info in key_infos(config).items():
        value = getattr(config, name)
        if info.affects_result:
            settings[name] = result_settings(value) if is_dataclass(value) else value
    return settings


@dataclass(frozen=True)
class KeyRow:
    """One key as text, for tables."""

    key: str
    type: str
    default: str
    range: str
    doc: str


def describe(cls: type, prefix: str = "", defaults: object = None) -> Iterator[KeyRow]:
    """Every key of a dataclass and of those inside it, under its dotted name.

    Args: defaults: an instance to take the defaults from (default: a new one).
    """
    defaults, types = cls() if defaults is None else defaults, get_type_hints(cls)
    for each in fields(cls):
        name, kind = prefix + each.name, types[each.name]
        value, info = getattr(defaults, each.name), each.metadata["key"]
        inner = [part for part in get_args(kind) if is_dataclass(part)]
        if is_dataclass(kind):
            yield from describe(kind, f"{name}.", value)  # type: ignore[arg-type]
            continue
        yield KeyRow(name, str(each.type), default_text(value), info.range, info.doc)
        for part in inner:  # a mapping of names to dataclasses
            yield from describe(part, f"{name}.NAME.")  # type: ignore[arg-type]


def default_text(value: object) -> str:
    """As it would be written in a recipe."""
    if value == MISSING:
        return REQUIRED
    if isinstance(value, list):
        return f"[{', '.join(map(default_text, value))}]"
    if isinstance(value, dict):
        parts = (f"{name}: {default_text(each)}" for name, each in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)

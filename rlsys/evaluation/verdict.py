"""The verdict of a data source's oracle on one answer to one prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """harmful: of the prompt. Exactly one of complies and declines is set; redirects implies
    declines, right implies complies. helpful_rate in 0..3, harmless_rate in -3..3.
    """

    harmful: bool
    complies: bool
    declines: bool
    redirects: bool
    right: bool
    helpful_rate: int
    harmless_rate: int

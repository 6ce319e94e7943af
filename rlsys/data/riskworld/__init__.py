"""Synthetic data: drawn images and instructions with known risks, and an oracle of answers."""

from rlsys.data.riskworld import judgements
from rlsys.data.riskworld.generate import write
from rlsys.data.riskworld.oracle import judge

__all__ = ["judge", "judgements", "write"]

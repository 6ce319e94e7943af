"""A built-in world of drawn images and instructions whose risks an oracle knows."""

from rlsys.data.riskworld import judgements
from rlsys.data.riskworld.generate import write
from rlsys.data.riskworld.oracle import judge

__all__ = ["judge", "judgements", "write"]

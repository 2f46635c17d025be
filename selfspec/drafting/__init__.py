"""Draft strategies, one file each, behind one small protocol: `selfspec.call.Drafter`."""

from selfspec.drafting.early_exit import EarlyExit
from selfspec.drafting.stopping import StopRule

__all__ = ["EarlyExit", "StopRule"]

"""Draft strategies, one file each, behind one small protocol."""

from selfspec.drafting.early_exit import EarlyExit
from selfspec.drafting.protocol import Draft, Drafter

__all__ = ["Draft", "Drafter", "EarlyExit"]

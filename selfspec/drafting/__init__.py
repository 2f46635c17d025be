"""Draft strategies, one file each, behind one small protocol: `selfspec.call.Drafter`."""

from selfspec.drafting.early_exit import EarlyExit
from selfspec.drafting.lookup import Lookup
from selfspec.drafting.low_bit import LowBit
from selfspec.drafting.model_drafter import ModelDrafter
from selfspec.drafting.stopping import StopRule
from selfspec.drafting.switching import Switching

__all__ = ["EarlyExit", "Lookup", "LowBit", "ModelDrafter", "StopRule", "Switching"]

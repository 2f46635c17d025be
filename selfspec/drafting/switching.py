"""Drafts by one arm in one round and by another in the next, as it is told."""

from torch import Tensor

from layer_skip.low_bit import LowBitView
from selfspec.call import Call
from selfspec.drafting.early_exit import EarlyExit
from selfspec.drafting.low_bit import LowBit
from selfspec.drafting.model_drafter import ModelDrafter
from selfspec.drafting.stopping import StopRule
from selfspec.round import Arm, Draft
from selfspec.tree import TreeOfDepth, chain


class Switching(ModelDrafter):
    """Early exits and a low-bit view, whichever the next round is to draft with: see `turn_to`.

    Lives as long as a call. Chains without a rule can be drafted on a device alone.

    Args:
        view: layers and head in few bits; None where only early exits will be asked for.
    """

    def __init__(self, view: LowBitView | None = None) -> None:
        super().__init__(exit_layer=1)
        self.early = EarlyExit(1)
        self._low_bit = None if view is None else LowBit(view, 1)
        self._drafter: ModelDrafter = self.early

    @property
    def arm(self) -> Arm:
        return self._drafter.arm

    def turn_to(self, arm: Arm, shape: TreeOfDepth = chain, rule: StopRule | None = None) -> None:
        """Draft so from the next round on.

        Raises:
            ValueError: an arm of a low-bit view, and there is none.
        """
        drafter = self._low_bit if arm.low_bit else self.early
        if drafter is None:
            raise ValueError(f"{arm}: there is no low-bit view")
        drafter.exit_layer = self.exit_layer = arm.exit_layer
        drafter.shape = self.shape = shape
        drafter.rule = self.rule = rule
        self._drafter = drafter

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        """Draft `length` tokens deep by the arm that was turned to."""
        return self._drafter.draft(call, length, graft)

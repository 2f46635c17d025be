"""What all drafts by the model's own layers have in common: how their candidates follow each other."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from torch import Tensor

from layer_skip.span import Span
from selfspec.call import Call
from selfspec.drafting.expansion import expand, expand_while_sure, with_graft
from selfspec.drafting.margins import MarginStop
from selfspec.drafting.stopping import StopRule
from selfspec.round import Arm, Draft, Step
from selfspec.tree import Level, Tree, TreeOfDepth, chain

Read = Callable[[Span, Tensor, Level], Tensor]
"""(where the candidates stand, tokens [B, w], level) -> the draft's logits [B, w, V] for these nodes."""


class ModelDrafter(ABC):
    """A drafter that runs layers of the model, and can take candidates from elsewhere into its tree.

    Args:
        exit_layer: E.
        shape: the tree of a given depth; by default a chain.
        rule: where a chain stops early, the same in every round, see `expand`.
        stop: draft chains as long as it says, which it learns on the way, see `expand_while_sure`.
        siblings: whether those get second choices where the draft is not sure.
    """

    def __init__(
        self,
        exit_layer: int,
        shape: TreeOfDepth = chain,
        rule: StopRule | None = None,
        stop: MarginStop | None = None,
        siblings: bool = False,
    ) -> None:
        self.exit_layer = exit_layer
        self.shape = shape
        self.rule = rule
        self.stop = stop
        self._siblings = siblings

    @property
    @abstractmethod
    def arm(self) -> Arm:
        """The way of drafting."""

    def plan(self, call: Call, length: int) -> Step:
        """What `draft` would draft, for an engine that runs whole rounds by itself."""
        return Step(self.arm, length)

    @property
    def is_fixed(self) -> bool:
        """Whether every draft is a chain as long as it was asked for."""
        return self.shape is chain and self.rule is None and self.stop is None and not self._siblings

    @abstractmethod
    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        """Draft up to `length` tokens deep, with the tokens [B, n] of `graft` as a branch of their own."""

    def grow(self, call: Call, length: int, graft: Tensor | None, read: Read) -> tuple[Tree, Span, Tensor]:
        """Choose the candidates; returns their tree, where they stand, and their tokens [B, n]."""
        if self.stop is None or not call.mode.matching or not length:
            tree = with_graft(self.shape(length), graft)
            span = call.lay_out(tree)
            tree, tokens = expand(call, tree, partial(read, span), self.rule, graft)
            return tree, span, tokens
        call.open(length if graft is None else max(length, graft.shape[1]))
        span = call.place(chain(length))
        tree, tokens = expand_while_sure(call, length, partial(read, span), self.stop, self._siblings, graft)
        return tree, span if tree.is_chain else call.place(tree), tokens

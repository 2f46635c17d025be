"""Draft with a low-bit view of the target's own layers; verification runs all layers in their own weights."""

import torch
from torch import Tensor

from layer_skip.low_bit import LowBitView
from selfspec.call import Call
from selfspec.drafting.expansion import expand, expand_while_sure, with_graft
from selfspec.drafting.margins import MarginStop
from selfspec.drafting.stopping import StopRule
from selfspec.round import Draft
from selfspec.shapes import FASTEST
from selfspec.tree import Level, TreeOfDepth, chain


class LowBit:
    """The view's layers, then final norm and its head, over the target's exact K/V of the committed text.

    The K/V of drafted tokens go to their slots of the shared cache, as scratch: verification overwrites them.

    Args:
        view: layers and head in few bits.
        exit_layer: E, up to the number of layers of the view.
        shape: the tree of a given depth; by default a chain.
        rule: where a chain stops early, the same in every round, see `expand`.
        stop: draft chains as long as it says, which it learns on the way, see `expand_while_sure`.
        siblings: whether those get second choices where the draft is not sure.
    """

    def __init__(
        self,
        view: LowBitView,
        exit_layer: int,
        shape: TreeOfDepth = chain,
        rule: StopRule | None = None,
        stop: MarginStop | None = None,
        siblings: bool = False,
    ) -> None:
        self._view = view
        self.exit_layer = exit_layer
        self.shape = shape
        self.rule = rule
        self.stop = stop
        self._siblings = siblings

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        """Draft `length` tokens deep. Passes are not padded: what the view rounds decides no token."""
        adaptive = self.stop is not None and call.mode.matching and length > 0
        tree = chain(length) if adaptive else with_graft(self.shape(length), graft)
        span = call.lay_out(tree)
        decoder = self._view.of(call.decoder)
        key_length = FASTEST.key_length(max(call.rows.cached) + tree.size)

        def read(tokens: Tensor, level: Level) -> Tensor:
            place = span.narrow(level.first, tokens.shape[1]).shortened(key_length)
            hidden = decoder.embed(tokens, place)
            hidden = decoder.run(hidden, 0, self.exit_layer, place, call.cache.window(place))
            return decoder.logits(hidden)

        if self.stop is not None and adaptive:
            tree, tokens = expand_while_sure(call, length, read, self.stop, self._siblings, graft)
            span = span if tree.is_chain else call.lay_out(tree)
        else:
            tree, tokens = expand(call, tree, read, self.rule, graft)
        nodes = torch.cat([call.rows.last_tokens()[:, None], tokens.clamp(min=0)], dim=1)
        return Draft(tree, span, tokens, call.decoder.embed(nodes, span.narrow(0, tree.size)))

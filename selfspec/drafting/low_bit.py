"""Draft with a low-bit view of the target's own layers; verification runs all layers in their own weights."""

import torch
from torch import Tensor

from layer_skip.low_bit import LowBitView
from selfspec.call import Call
from selfspec.drafting.expansion import expand, with_graft
from selfspec.drafting.stopping import StopRule
from selfspec.round import Draft
from selfspec.tree import Level, TreeOfDepth, chain


class LowBit:
    """The view's layers, then final norm and its head, over the target's exact K/V of the committed text.

    The K/V of drafted tokens go to their slots of the shared cache, as scratch: verification overwrites them.

    Args:
        view: layers and head in few bits.
        exit_layer: E, up to the number of layers of the view.
        shape: the tree of a given depth; by default a chain.
        stop: when a chain stops early, None for never.
    """

    def __init__(
        self,
        view: LowBitView,
        exit_layer: int,
        shape: TreeOfDepth = chain,
        stop: StopRule | None = None,
    ) -> None:
        self._view = view
        self.exit_layer = exit_layer
        self.shape = shape
        self.stop = stop

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        """Draft `length` tokens deep. Passes are not padded: what the view rounds decides no token."""
        tree = with_graft(self.shape(length), graft)
        span = call.lay_out(tree)
        decoder = self._view.of(call.decoder)

        def read(tokens: Tensor, level: Level) -> Tensor:
            place = span.narrow(level.first, tokens.shape[1])
            hidden = decoder.embed(tokens, place)
            hidden = decoder.run(hidden, 0, self.exit_layer, place, call.cache.window(place))
            return decoder.logits(hidden)

        tree, tokens = expand(call, tree, read, self.stop, graft)
        nodes = torch.cat([call.rows.last_tokens()[:, None], tokens.clamp(min=0)], dim=1)
        return Draft(tree, span, tokens, call.decoder.embed(nodes, span.narrow(0, tree.size)))

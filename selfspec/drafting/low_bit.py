"""Draft with a low-bit view of the target's own layers; verification runs all layers in their own weights."""

from typing import Any

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from layer_skip.span import Span
from selfspec.call import Call
from selfspec.drafting.model_drafter import ModelDrafter
from selfspec.round import Arm, Draft
from selfspec.shapes import FASTEST
from selfspec.tree import Level


class LowBit(ModelDrafter):
    """The view's layers, then final norm and its head, over the target's exact K/V of the committed text.

    The K/V of drafted tokens go to their slots of the shared cache, as scratch: verification overwrites them.
    Lives as long as a call, and reads the weights as they are when it first drafts.

    Args:
        view: layers and head in few bits.
        exit_layer: E, up to the number of layers of the view.
        how: the rest of `ModelDrafter`'s arguments.
    """

    def __init__(self, view: LowBitView, exit_layer: int, *how: Any, **more: Any) -> None:
        super().__init__(exit_layer, *how, **more)
        self._view = view
        self._decoder: LayeredDecoder | None = None

    @property
    def arm(self) -> Arm:
        return Arm(self.exit_layer, low_bit=True)

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        """Draft `length` tokens deep. Passes are not padded: what the view rounds decides no token."""
        decoder = self._decoder
        if decoder is None:  # once a call: finding out whether a weight has changed looks at every module
            decoder = self._decoder = self._view.of(call.decoder)
        cached = max(call.rows.cached)

        def read(span: Span, tokens: Tensor, level: Level) -> Tensor:
            place = span.narrow(level.first, tokens.shape[1])
            place = place.shortened(FASTEST.key_length(cached + span.width))
            hidden = decoder.embed(tokens, place)
            hidden = decoder.run(hidden, 0, self.exit_layer, place, call.cache.window(place))
            return decoder.logits(hidden)

        tree, span, tokens = self.grow(call, length, graft, read)
        nodes = torch.cat([call.rows.last_tokens()[:, None], tokens.clamp(min=0)], dim=1)
        return Draft(tree, span, tokens, call.decoder.embed(nodes, span.narrow(0, tree.size)))

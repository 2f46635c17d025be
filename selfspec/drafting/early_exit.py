"""Draft with the target's own first layers and its LM head; nothing of it is run again at verification."""

import torch
from torch import Tensor

from layer_skip.span import Span
from selfspec.call import Call
from selfspec.drafting.model_drafter import ModelDrafter
from selfspec.round import Arm, Draft
from selfspec.tree import Level


class EarlyExit(ModelDrafter):
    """Layers [0, E), then final norm and LM head (LayerSkip, Elhoushi et al. 2024, section 4.3)."""

    @property
    def arm(self) -> Arm:
        return Arm(self.exit_layer, low_bit=False)

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        """Draft `length` tokens deep, keeping the hidden state of each candidate at the exit layer."""
        hidden: list[Tensor] = []

        def read(span: Span, tokens: Tensor, level: Level) -> Tensor:
            states = self._early_layers(call, span, tokens, level.first)
            hidden.append(states[:, : tokens.shape[1]])
            return call.decoder.logits(states)[:, : tokens.shape[1]]

        tree, span, tokens = self.grow(call, length, graft, read)
        nodes = torch.cat([call.rows.last_tokens()[:, None], tokens.clamp(min=0)], dim=1)
        leaves = self._early_layers(call, span, nodes[:, tree.n_inner :], tree.n_inner)
        hidden.append(leaves[:, : tree.size - tree.n_inner])
        return Draft(tree, span, tokens, torch.cat(hidden, dim=1), self.exit_layer)

    def _early_layers(self, call: Call, span: Span, tokens: Tensor, first: int) -> Tensor:
        """Hidden states [B, w, D] of tokens [B, m] from column `first` on after E layers, padded to w >= m.

        The spare columns repeat the last token in the slots that follow; later passes overwrite those.
        """
        width = call.shapes.width(*tokens.shape)
        span = span.narrow(first, width)
        spare = tokens[:, -1:].expand(-1, width - tokens.shape[1])
        return self._run_early(call, call.decoder.embed(torch.cat([tokens, spare], dim=1), span), span)

    def _run_early(self, call: Call, hidden: Tensor, span: Span) -> Tensor:
        return call.decoder.run(hidden, 0, self.exit_layer, span, call.cache.window(span))

"""Draft with the target's own first layers and its LM head; nothing of it is run again at verification."""

import torch
from torch import Tensor

from layer_skip.span import Span
from selfspec.call import Call
from selfspec.drafting.expansion import expand, expand_while_sure, with_graft
from selfspec.drafting.margins import MarginStop
from selfspec.drafting.stopping import StopRule
from selfspec.round import Draft
from selfspec.tree import Level, TreeOfDepth, chain


class EarlyExit:
    """Layers [0, E), then final norm and LM head (LayerSkip, Elhoushi et al. 2024, section 4.3).

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

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        """Draft `length` tokens deep, keeping the hidden state of each candidate at the exit layer."""
        adaptive = self.stop is not None and call.mode.matching and length > 0
        tree = chain(length) if adaptive else with_graft(self.shape(length), graft)
        span = call.lay_out(tree)
        hidden: list[Tensor] = []

        def read(tokens: Tensor, level: Level) -> Tensor:
            states = self._early_layers(call, span, tokens, level.first)
            hidden.append(states[:, : tokens.shape[1]])
            return call.decoder.logits(states)[:, : tokens.shape[1]]

        if self.stop is not None and adaptive:
            tree, tokens = expand_while_sure(call, length, read, self.stop, self._siblings, graft)
            span = span if tree.is_chain else call.lay_out(tree)
        else:
            tree, tokens = expand(call, tree, read, self.rule, graft)
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

"""A prompt that is given as embeddings: its last token has no id to draft from."""

import torch
from torch import Tensor

from selfspec.call import Call, Drafter
from selfspec.round import Draft
from selfspec.tree import chain


class FromEmbeddings:
    """A plain first round on the prompt's last embedding, then another drafter.

    Args:
        drafter: drafts once there are tokens.
        last: [B, 1, D'].
    """

    def __init__(self, drafter: Drafter, last: Tensor) -> None:
        self._drafter = drafter
        self._last: Tensor | None = last

    def draft(self, call: Call, length: int) -> Draft:
        """Nothing in the first round; later as the other drafter."""
        if self._last is None:
            return self._drafter.draft(call, length)
        tree = chain(0)
        span = call.lay_out(tree)
        hidden = call.decoder.place(self._last, span.narrow(0, 1))
        self._last = None
        return Draft(tree, span, torch.empty(len(hidden), 0, dtype=torch.int64, device=hidden.device), hidden)

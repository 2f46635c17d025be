"""Free drafts in front of the model's own: looked up where the text repeats, drafted where it does not."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from selfspec.call import Call
from selfspec.drafting.lookup import LONGEST, Found, Lookup, as_columns
from selfspec.drafting.margins import MarginStop
from selfspec.round import Draft
from selfspec.tree import TreeOfDepth

Worth = Callable[[list[Found], int], bool]
"""(found, K) -> whether looked-up drafts promise more than a model's draft of K tokens."""


class ModelDrafter(Protocol):
    """A drafter that runs layers, and can take candidates from elsewhere into its tree."""

    shape: TreeOfDepth
    stop: MarginStop | None

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft: ...


class Hybrid:
    """Look up first. Where that is worth less than the model's own draft, the model drafts.

    With trees, what was found then joins the model's candidates as a branch of its own, in the same pass.

    Args:
        branches: whether found tokens may join (they take other cache slots than a chain's, see `Tree`).
    """

    def __init__(self, lookup: Lookup, model: ModelDrafter, worth: Worth, branches: bool = False) -> None:
        self._lookup = lookup
        self._model = model
        self._worth = worth
        self._branches = branches

    def draft(self, call: Call, length: int) -> Draft:
        """Draft `length` tokens deep, or as far as the match reaches."""
        found = self._lookup.find(call, min(LONGEST, call.rows.remaining - 1))
        if self._worth(found, length):
            return self._lookup.draft_of(call, found)
        graft = as_columns([row.tokens for row in found], call.rows.sequences.device)
        return self._model.draft(call, length, graft if self._branches and graft.shape[1] else None)

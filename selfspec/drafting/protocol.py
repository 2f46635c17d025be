"""What a draft strategy hands to verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from selfspec.call import Call, Round


@dataclass(frozen=True)
class Draft:
    """Candidate tokens of a round, and how far the target has already run on them."""

    tokens: Tensor
    """[B, K] int64"""
    drafted: Tensor
    """[B] int64: how many of the K columns each row really drafted (a row may stop early)."""
    hidden: Tensor
    """[B, K+1, D]: hidden states of the last committed token and the drafted ones after `exact_layers` layers."""
    exact_layers: int
    """Layers that the target's own weights have already run, K/V in the cache; verification runs the others."""


class Drafter(Protocol):
    """A draft strategy."""

    def draft(self, call: Call, round_: Round) -> Draft:
        """Draft up to `round_.length` tokens for every active row of `call`."""

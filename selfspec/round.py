"""The data of one round: its shape, and what a draft hands to verification."""

from dataclasses import dataclass

from torch import Tensor

from layer_skip.span import Span


@dataclass(frozen=True)
class Round:
    """The shape of one round, fixed before it starts."""

    length: int
    """K of this round."""
    span: Span
    """Positions from the last committed token on: K+1 of them, and spare ones that pad the passes."""
    step_width: int
    """Columns of a draft step: one real, the others padding."""


@dataclass(frozen=True)
class Draft:
    """Candidate tokens of a round, and how far the target has already run on them."""

    tokens: Tensor
    """[B, K] int64"""
    drafted: Tensor
    """[B] int64: how many of the K columns each row really drafted (a row may stop early)."""
    hidden: Tensor
    """[B, K+1, D]: the last committed token and the drafted ones, after `exact_layers` layers."""
    exact_layers: int
    """Layers that the target's own weights have run, K/V in the cache; verification runs the others."""

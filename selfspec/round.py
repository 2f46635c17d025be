"""The data of one round: what a draft hands to verification, and what verification makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layer_skip.span import Span
from selfspec.tree import Tree

NOTHING = -1
"""Stands where a row has no candidate: no target ever chooses it."""


@dataclass(frozen=True, order=True)
class Arm:
    """One way to draft with the model's own layers."""

    exit_layer: int
    low_bit: bool

    @property
    def kind(self) -> str:
        """The strategy's name in `SpeculationConfig.draft`."""
        return "low_bit" if self.low_bit else "early_exit"

    def __str__(self) -> str:
        return f"{'low-bit' if self.low_bit else 'early-exit'} draft, exit layer {self.exit_layer}"


@dataclass(frozen=True)
class Step:
    """What a round is to draft, decided before anything is run: a chain by an arm, or what was found."""

    arm: Arm | None
    """None: nothing is run; what is drafted was found."""
    length: int
    """Tokens of the longest row; 0 for a plain round."""
    found: Sequence[Sequence[int]] = ()
    """Of every active row, where there is no arm."""


@dataclass(frozen=True)
class Draft:
    """Candidate tokens of a round, and how far the target has already run on them."""

    tree: Tree
    """How the candidates follow each other, the same in every row."""
    span: Span
    """Where the last committed token and the candidates stand, and spare columns that pad the passes."""
    tokens: Tensor
    """[B, n] int64; NOTHING where a row drafted less than the others."""
    hidden: Tensor
    """[B, n+1, D]: the last committed token and the candidates, after `exact_layers` layers."""
    exact_layers: int = 0
    """Layers that the target's own weights have run, K/V in the cache; verification runs the others."""
    given: bool = False
    """Whether the tokens were found, rather than drawn from the draft's distribution."""

    @property
    def drafted(self) -> Tensor:
        """Candidates of each row, [B]."""
        return (self.tokens != NOTHING).sum(dim=1)

    @property
    def deepest(self) -> Tensor:
        """Tokens on the longest path that each row drafted, [B]."""
        if self.tree.is_chain:
            return self.drafted
        depths = torch.tensor(self.tree.depths[1:], device=self.tokens.device)
        return torch.where(self.tokens != NOTHING, depths, 0).amax(dim=1)


@dataclass(frozen=True)
class Verdict:
    """What stands of a draft."""

    accepted: Tensor
    """[B]: draft tokens that stand."""
    tokens: Tensor
    """[B, depth+1]: the tokens to commit, of which the first accepted+1 count."""
    columns: Tensor | None = None
    """[B, depth+1]: where the accepted tokens stood, from the root on; None for a chain (0, 1, 2, ...)."""

    def ranks(self, row: int, tree: Tree) -> tuple[int, ...]:
        """For each accepted token of a row, which of the draft's candidates it was."""
        accepted = int(self.accepted[row])
        if self.columns is None:
            return (0,) * accepted
        return tuple(tree.ranks[column - 1] for column in self.columns[row, 1 : accepted + 1].tolist())

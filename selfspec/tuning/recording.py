"""What a recording holds: the target's own texts, and what every exit would have drafted along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TOP = 4
"""Candidates kept per exit and position: the draft's choice and the next best three."""


@dataclass(frozen=True)
class Recording:
    """One workload's texts on one model. `P` prompts, `N` = max_new_tokens, `X` exits; all on the CPU."""

    tokens: Tensor
    """[P, N] int32: the target's own continuations; columns past a text's length hold -1."""
    lengths: Tensor
    """[P] int64: tokens generated, fewer than N where a text ended by itself."""
    prompt_lengths: Tensor
    """[P] int64"""
    exits: tuple[int, ...]
    """The exit layers that were read, in order."""
    candidates: Tensor
    """[X, P, N, TOP] int32: what each exit would draft there, best first."""
    confidence: Tensor
    """[X, P, N] float32: the exit's own probability of its first candidate."""
    sampled: bool
    seed: int

    @property
    def max_new_tokens(self) -> int:
        return self.tokens.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens in all texts together."""
        return int(self.lengths.sum())

    @property
    def inside(self) -> Tensor:
        """[P, N] bool: columns that belong to a text."""
        return torch.arange(self.max_new_tokens) < self.lengths[:, None]

    @property
    def right(self) -> Tensor:
        """[X, P, N] bool: the exit would draft what the target chose."""
        return (self.candidates[..., 0] == self.tokens) & self.inside

    @property
    def agreement(self) -> list[float]:
        """Share of positions where each exit drafts what the target chose, [X]."""
        return (self.right.flatten(1).sum(dim=1) / max(self.n_tokens, 1)).tolist()

    def index_of(self, exit_layer: int) -> int:
        """Where exit layer E stands among the recorded ones.

        Raises:
            ValueError: it was not recorded.
        """
        if exit_layer not in self.exits:
            raise ValueError(f"exit_layer={exit_layer} was not recorded; recorded are {list(self.exits)}")
        return self.exits.index(exit_layer)

    def of_prompts(self, rows: Sequence[int] | Tensor) -> Recording:
        """The recording of some of the prompts, in that order; a prompt may come more than once."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return replace(
            self,
            tokens=self.tokens[index],
            lengths=self.lengths[index],
            prompt_lengths=self.prompt_lengths[index],
            candidates=self.candidates[:, index],
            confidence=self.confidence[:, index],
        )


def joined(parts: Sequence[Recording]) -> Recording:
    """Recordings of several groups of prompts as one; they agree in everything but the prompts."""
    return replace(
        parts[0],
        tokens=torch.cat([part.tokens for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        prompt_lengths=torch.cat([part.prompt_lengths for part in parts]),
        candidates=torch.cat([part.candidates for part in parts], dim=1),
        confidence=torch.cat([part.confidence for part in parts], dim=1),
    )

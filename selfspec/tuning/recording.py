"""What a recording holds: the target's own texts, and what every way to draft would choose along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfspec.round import Arm

TOP = 4
"""Candidates kept per arm and position: the draft's choice and the next best three."""


@dataclass(frozen=True)
class Choices:
    """What one arm would draft along the texts. `J` draft positions, `P` prompts, `N` = max_new_tokens.

    An early exit reads the exact K/V of all that came before, drafted or not, so its choice depends on the
    place in the text alone and J is 1. A view reads K/V of its own for what it has drafted: there J is as
    long a draft as was recorded.
    """

    candidates: Tensor
    """[J, P, N, TOP] int32: what it would draft there, best first."""
    confidence: Tensor
    """[J, P, N] float32: its own probability of its first candidate."""

    def at(self, position: int) -> tuple[Tensor, Tensor]:
        """Candidates [P, N, TOP] and confidence [P, N] at a draft position, from 0."""
        j = min(position, len(self.confidence) - 1)
        return self.candidates[j], self.confidence[j]

    def of_prompts(self, index: Tensor) -> Choices:
        """Those of some of the prompts."""
        return Choices(self.candidates[:, index], self.confidence[:, index])


@dataclass(frozen=True)
class Recording:
    """One workload's texts on one model. `P` prompts, `N` = max_new_tokens; all on the CPU."""

    tokens: Tensor
    """[P, N] int32: the target's own continuations; columns past a text's length hold -1."""
    lengths: Tensor
    """[P] int64: tokens generated, fewer than N where a text ended by itself."""
    prompt_lengths: Tensor
    """[P] int64"""
    choices: Mapping[Arm, Choices]
    """What each arm that was read would draft."""
    sampled: bool
    seed: int

    @property
    def arms(self) -> list[Arm]:
        """The ways to draft that were read: early exits first, each kind by depth."""
        return sorted(self.choices, key=lambda arm: (arm.low_bit, arm.exit_layer))

    @property
    def reads_view(self) -> bool:
        """Whether a low-bit view was read as well."""
        return any(arm.low_bit for arm in self.choices)

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
    def agreement(self) -> dict[Arm, float]:
        """Share of places in the text where each arm, beginning a round, drafts what the target chose."""
        total = max(self.n_tokens, 1)
        return {arm: float(self.right(arm)[0].sum()) / total for arm in self.arms}

    def right(self, arm: Arm) -> Tensor:
        """[J, P, N] bool: the arm would draft what the target chose."""
        return (self.of(arm).candidates[..., 0] == self.tokens) & self.inside

    def longest(self, arm: Arm) -> int | None:
        """The longest draft by an arm that can be told, None where any length can."""
        count = len(self.of(arm).confidence)
        return count if arm.low_bit else None

    def of(self, arm: Arm) -> Choices:
        """What an arm would draft.

        Raises:
            ValueError: it was not recorded.
        """
        if arm not in self.choices:
            known = [other.exit_layer for other in self.arms if other.low_bit == arm.low_bit]
            raise ValueError(
                f"draft={arm.kind!r} with exit_layer={arm.exit_layer} was not recorded; recorded are {known}"
            )
        return self.choices[arm]

    def of_prompts(self, rows: Sequence[int] | Tensor) -> Recording:
        """The recording of some of the prompts, in that order; a prompt may come more than once."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return replace(
            self,
            tokens=self.tokens[index],
            lengths=self.lengths[index],
            prompt_lengths=self.prompt_lengths[index],
            choices={arm: own.of_prompts(index) for arm, own in self.choices.items()},
        )

    def beside(self, other: Recording) -> Recording:
        """With the arms of another recording of the same texts."""
        return replace(self, choices={**self.choices, **other.choices})


def joined(parts: Sequence[Recording]) -> Recording:
    """Recordings of several groups of prompts as one; they agree in everything but the prompts."""
    return replace(
        parts[0],
        tokens=torch.cat([part.tokens for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        prompt_lengths=torch.cat([part.prompt_lengths for part in parts]),
        choices={
            arm: Choices(
                torch.cat([part.choices[arm].candidates for part in parts], dim=1),
                torch.cat([part.choices[arm].confidence for part in parts], dim=1),
            )
            for arm in parts[0].choices
        },
    )

"""Drafters whose tokens are known beforehand, so that a round's arithmetic can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec import strategy
from selfspec.drafting import EarlyExit
from selfspec.tree import TreeOfDepth, chain

Right = Callable[[int, int], bool]
"""Whether the draft of row r for its i-th generated token is right."""

RIGHT: dict[str, Right] = {
    "always": lambda row, index: True,
    "never": lambda row, index: False,
    "two of three": lambda row, index: index % 3 != 2,
    "unequal rows": lambda row, index: (index * (row + 2)) % 5 < 3,
}

Place = Callable[[int, int], int]
"""Which of a tree's candidates of row r for its i-th token the right one is: 0 for the first."""

TREE = (0, 0, 0, 1, 1, 2, 4, 6)
"""Three firsts; two below the first of them and one below the second; one more below each of two of those."""


def generated(out: Tensor, prompts: dict[str, Tensor]) -> list[list[int]]:
    rows: list[list[int]] = out[:, prompts["input_ids"].shape[1] :].tolist()
    return rows


class ScriptedDrafter(EarlyExit):
    """Runs the early layers as ever, but drafts the known text, or something else where `right` says so.

    Every node of a depth has the same candidates, so a tree holds the right token in wrong branches too.
    """

    def __init__(
        self,
        exit_layer: int,
        shape: TreeOfDepth,
        texts: Sequence[Sequence[int]],
        right: Right,
        vocab: int,
        place: Place,
    ) -> None:
        super().__init__(exit_layer, shape)
        self._texts = texts
        self._right = right
        self._vocab = vocab
        self._place = place

    def draft(self, call: Any, length: int, graft: Tensor | None = None) -> Any:
        mode = call.mode
        call.mode = self
        self._rows = call.rows
        self.open = mode.open
        try:
            return super().draft(call, length, graft)
        finally:
            call.mode = mode

    def candidates(self, scores: Tensor, step: int, count: int) -> Tensor:
        """In place of the mode's choice."""
        tokens = []
        for row in self._rows.active:
            index = self._rows.generated[row] + step
            token = self._texts[row][index] if index < len(self._texts[row]) else 0
            picked = [(token + 1 + i) % self._vocab for i in range(count)]
            if self._right(row, index) and self._place(row, index) < count:
                picked[self._place(row, index)] = token
            tokens.append(picked)
        return torch.tensor(tokens)[:, None].expand(-1, scores.shape[1], -1)


def use_scripted_drafts(
    monkeypatch: pytest.MonkeyPatch,
    texts: Sequence[Sequence[int]],
    right: Right,
    vocab: int,
    place: Place = lambda row, index: 0,
) -> None:
    """Every call from now on drafts by this script."""

    def scripted(exit_layer: int, shape: TreeOfDepth = chain, *_: Any) -> ScriptedDrafter:
        return ScriptedDrafter(exit_layer, shape, texts, right, vocab, place)

    monkeypatch.setattr(strategy, "EarlyExit", scripted)


def rounds_by_hand(right: Sequence[bool], draft_length: int, tokens: int) -> list[tuple[int, int, int]]:
    """(drafted, accepted, committed) of every round of one row that generates `tokens` tokens."""
    rounds, done = [], 0
    while done < tokens:
        drafted = min(draft_length, tokens - done - 1)
        accepted = next((i for i in range(drafted) if not right[done + i]), drafted)
        rounds.append((drafted, accepted, accepted + 1))
        done += accepted + 1
    return rounds

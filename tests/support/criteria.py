"""Stopping criteria as users write them: with a memory, an eye on other rows or scores, or an old kind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class EndsWith(StoppingCriteria):
    """Stops a row after one of some tokens, without a memory."""

    def __init__(self, *tokens: int) -> None:
        self._tokens = torch.tensor(tokens)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self._tokens)


class Crowd(StoppingCriteria):
    """Stops a row when its last token has been said so often, by whichever row; keeps all it was asked."""

    def __init__(self, often: int) -> None:
        self._often = often
        self._said: Counter[int] = Counter()
        self.asked: list[list[list[int]]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.asked.append(input_ids.tolist())
        self._said.update(input_ids[:, -1].tolist())
        return torch.tensor([self._said[token] >= self._often for token in input_ids[:, -1].tolist()])


class Sure(StoppingCriteria):
    """Stops a row when its best score leads by more than so much; keeps the scores that it was given."""

    def __init__(self, lead: float) -> None:
        self._lead = lead
        self.given: list[tuple[Tensor, ...] | None] = []

    def __call__(self, input_ids: Tensor, scores: tuple[Tensor, ...] | None, **_: Any) -> Tensor:
        self.given.append(scores)
        if scores is None:
            return torch.zeros(len(input_ids), dtype=torch.bool)
        first, second = scores[-1].topk(2).values.T
        return first - second > self._lead


class Patience(StoppingCriteria):
    """Ends the whole call when it was asked so often, with a plain bool as in old releases."""

    def __init__(self, questions: int) -> None:
        self._left = questions

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> bool:
        self._left -= 1
        return self._left <= 0

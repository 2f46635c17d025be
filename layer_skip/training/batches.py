"""Token windows for every step, a pure function of (seed, step): that is what makes resuming exact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from layer_skip.training.config import TrainingConfig


def encode_files(tokenizer: Any, texts: Iterable[str]) -> Tensor:
    """All texts as one stream of token ids [n], each document ended by the end-of-text token."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts))
    end = tokenizer.eos_token_id
    ids = [token for document in encoded for token in (*document.ids, end)]
    return torch.tensor(ids, dtype=torch.long)


class Batches:
    """Cuts `stream` [n] into training windows, each seen once an epoch, in an order drawn from the seed."""

    def __init__(self, stream: Tensor, config: TrainingConfig) -> None:
        longest = max(config.sequence_length, config.long_sequence_length if config.long_every else 0)
        if stream.numel() < longest + 2:
            raise ValueError(f"{stream.numel()} tokens of training text; allowed: at least {longest + 2}")
        self.stream = stream
        self.config = config

    def _generator(self, *key: int) -> torch.Generator:
        seed = self.config.seed
        for part in key:
            seed = (seed * 1_000_003 + part + 1) % (2**63)
        return torch.Generator().manual_seed(seed)

    def _is_long(self, step: int) -> bool:
        return bool(self.config.long_every) and step % self.config.long_every == self.config.long_every - 1

    def _starts(self, step: int, rows: int, length: int) -> Tensor:
        """Where the windows of this step begin."""
        if self._is_long(step):
            last = self.stream.numel() - length - 1
            return torch.randint(0, last + 1, (rows,), generator=self._generator(0, step))
        windows = (self.stream.numel() - 1) // length
        index = torch.arange(step * rows, (step + 1) * rows)
        starts = torch.empty(rows, dtype=torch.long)
        for epoch in (index // windows).unique().tolist():
            order = torch.randperm(windows, generator=self._generator(1, epoch))
            here = (index // windows) == epoch
            starts[here] = order[index[here] % windows] * length
        return starts

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and next-token labels of a step, each [B, T]."""
        config = self.config
        length = config.long_sequence_length if self._is_long(step) else config.sequence_length
        rows = max(1, config.tokens_per_step // length)
        places = self._starts(step, rows, length)[:, None] + torch.arange(length + 1)
        windows = self.stream[places]
        return windows[:, :-1], windows[:, 1:]

    def keep_rows(self, step: int, rates: list[float], rows: int) -> Tensor | None:
        """Which rows run which layer, [L, rows] bool, at these dropout rates; None when all rows run all."""
        if not any(rates):
            return None
        draws = torch.rand(len(rates), rows, generator=self._generator(2, step))
        return draws >= torch.tensor(rates)[:, None]

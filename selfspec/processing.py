"""Logits processors over several positions at once, each position seeing exactly its own prefix."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from selfspec.rows import Rows

_NAMES = (
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TopHLogitsWarper",
    "MinPLogitsWarper",
    "TypicalLogitsWarper",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "LogitNormalization",
    "InfNanRemoveLogitsProcessor",
    "SuppressTokensLogitsProcessor",
)
_PREFIX_FREE = frozenset(getattr(logits_process, name) for name in _NAMES if hasattr(logits_process, name))
"""Processors that look at the scores alone: they take all positions in one call."""


class Processors:
    """The request's logits processors, in order.

    Args:
        processors: Hugging Face processors, called as `processor(input_ids, scores)`. One that looks at the
            prefix is called once per row and position, so it must not keep state of its own between calls.
    """

    def __init__(self, processors: Sequence[object]) -> None:
        self._list = LogitsProcessorList(processors)
        self._rows: dict[int, LogitsProcessorList] = {}
        self.reads_prefix = any(type(processor) not in _PREFIX_FREE for processor in processors)

    def __call__(
        self, logits: Tensor, rows: Rows, candidates: Tensor, paths: Sequence[Sequence[int]]
    ) -> Tensor:
        """Scores [B, m, V] in float32 for logits [B, m, V] of the last committed token and of candidates.

        Args:
            candidates: [B, n] draft tokens.
            paths: for each of the m columns the candidates between the last committed token and the one
                that it predicts, as columns of `candidates`; the root's is empty.
        """
        scores = logits.float()
        if not self._list:
            return scores
        if not self.reads_prefix:
            flat = scores.flatten(0, 1)
            return self._list(rows.sequences[:1, : rows.prompt_width], flat).view_as(scores)
        out = torch.empty_like(scores)
        drafted = candidates.clamp(min=0)
        for i, (row, end) in enumerate(zip(rows.active, rows.ends(), strict=True)):
            for j, path in enumerate(paths):
                # The row's scratch columns take the candidates, so that a prefix is one piece.
                rows.sequences[row, end : end + len(path)] = drafted[i, list(path)]
                prefix = rows.sequences[row : row + 1, : end + len(path)]
                out[i, j] = self._of_row(row)(prefix, scores[i, j][None].clone())[0]
        return out

    def _of_row(self, row: int) -> LogitsProcessorList:
        """The processors as they are for one row of the batch."""
        if row not in self._rows:
            self._rows[row] = LogitsProcessorList(_for_row(processor, row) for processor in self._list)
        return self._rows[row]


def _for_row(processor: object, row: int) -> object:
    """One row's processor: the repetition penalty knows how far every row of the batch is padded."""
    lengths = getattr(processor, "prompt_ignore_length", None)
    if not isinstance(lengths, Tensor):
        return processor
    own = copy.copy(processor)
    own.prompt_ignore_length = lengths[row : row + 1]  # type: ignore[attr-defined]
    return own

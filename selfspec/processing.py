"""Logits processors over several positions at once, each position seeing exactly its own prefix."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from selfspec.round import NOTHING
from selfspec.rows import Rows

_PREFIX_FREE_NAMES = (
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
_PREFIX_NAMES = (
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "RepetitionPenaltyLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "NoBadWordsLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "ExponentialDecayLengthPenalty",
    "SuppressTokensAtBeginLogitsProcessor",
    "WatermarkLogitsProcessor",
)


def _classes(names: Sequence[str]) -> frozenset[type]:
    return frozenset(getattr(logits_process, name) for name in names if hasattr(logits_process, name))


_PREFIX_FREE = _classes(_PREFIX_FREE_NAMES)
"""Processors that look at the scores alone: they take all positions in one call."""
_ROWWISE = _PREFIX_FREE | _classes(_PREFIX_NAMES)
"""Processors whose answer for a row depends on that row alone, and on no call before."""
_CONSTRAINTS = _classes(("PrefixConstrainedLogitsProcessor",))
"""Processors of which some prefixes must not be asked about: those that they do not allow."""

Marked = TypeVar("Marked")


def rowwise(processor: Marked) -> Marked:
    """Mark a logits processor of your own, a class of them, or a function; returns it.

    You say so that its answer for a row depends on that row's tokens and scores alone: not on other rows,
    and not on earlier calls. Then it may be asked about drafted tokens, one row at a time, in any order.
    What is not marked is left to the model's own generate, with a warning.

    Stopping criteria are asked as the model's own loop asks them, marked or not. One kind of call needs the
    mark: several rows with an end token and output_scores=True, where rows that have ended show scores of 0.
    """
    processor.rowwise = True  # type: ignore[attr-defined]
    return processor


def is_rowwise(processor: object) -> bool:
    """Whether a processor may be asked row by row: one of transformers' own that is known, or marked."""
    return type(processor) in _ROWWISE or bool(getattr(processor, "rowwise", False))


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
        constrained = any(type(processor) not in _ROWWISE - _CONSTRAINTS for processor in processors)
        self._ruled_out = _RuledOut() if constrained else None

    @property
    def listed(self) -> Sequence[object]:
        """The processors, in order."""
        return self._list

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
                if self._ruled_out is not None and self._ruled_out(row, end, candidates[i, list(path)]):
                    out[i, j] = scores[i, j]
                    continue
                # The row's scratch columns take the candidates, so that a prefix is one piece.
                rows.sequences[row, end : end + len(path)] = drafted[i, list(path)]
                prefix = rows.sequences[row : row + 1, : end + len(path)]
                out[i, j] = self._of_row(row, len(rows.generated))(prefix, scores[i, j][None].clone())[0]
                if self._ruled_out is not None:
                    self._ruled_out.note(row, candidates[i, list(path)], out[i, j])
        return out

    def _of_row(self, row: int, rows: int) -> LogitsProcessorList:
        """The processors as they are for one row of a batch of so many."""
        if row not in self._rows:
            self._rows[row] = LogitsProcessorList(_for_row(processor, row, rows) for processor in self._list)
        return self._rows[row]


class _RuledOut:
    """Which drafted paths hold a token of score minus infinity: no text begins so.

    A constraint may raise on a prefix that it never allowed, and drafts that were found know nothing of it.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._allowed: dict[int, dict[tuple[int, ...], Tensor | None]] = {}
        """By row: drafted path -> tokens allowed after it [V]; None where the path itself is not."""

    def __call__(self, row: int, end: int, path: Tensor) -> bool:
        """Whether a path of tokens [d] after the row's `end` is ruled out."""
        if self._ends.get(row) != end:  # another round
            self._ends[row], self._allowed[row] = end, {}
        tokens = tuple(path.tolist())
        if not tokens or tokens[:-1] not in self._allowed[row]:
            return NOTHING in tokens
        allowed = self._allowed[row][tokens[:-1]]
        if tokens[-1] != NOTHING and allowed is not None and bool(allowed[tokens[-1]]):
            return False
        self._allowed[row][tokens] = None
        return True

    def note(self, row: int, path: Tensor, scores: Tensor) -> None:
        """Take up the scores [V] after a path; where all are minus infinity, greedy decoding goes on."""
        allowed = ~scores.isneginf()
        self._allowed[row][tuple(path.tolist())] = allowed if bool(allowed.any()) else ~allowed


def _for_row(processor: Any, row: int, rows: int) -> Any:
    """One row's processor, where it knows the rows of the batch by their place."""
    own = copy.copy(processor)
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        own.prompt_ignore_length = processor.prompt_ignore_length[row : row + 1]
    elif hasattr(processor, "encoder_input_ids"):
        prompt = row * len(processor.encoder_input_ids) // rows  # several rows may share a prompt
        own.encoder_input_ids = processor.encoder_input_ids[prompt : prompt + 1]
    elif hasattr(processor, "generated_ngrams"):
        prompt = row * processor.batch_size // rows
        own.generated_ngrams, own.batch_size = processor.generated_ngrams[prompt : prompt + 1], 1
    elif hasattr(processor, "_prefix_allowed_tokens_fn"):
        allowed = processor._prefix_allowed_tokens_fn
        own._prefix_allowed_tokens_fn = lambda _, prefix: allowed(row, prefix)
    else:
        return processor
    return own

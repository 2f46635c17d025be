"""A drafter that reads an early exit on the way: what it would have drafted on tokens verified anyway."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layer_skip.low_bit import LowBitView
from layer_skip.span import Span
from selfspec.call import Call
from selfspec.drafting import EarlyExit, Switching
from selfspec.round import Draft
from selfspec.rows import Rows


class _SplitExit(EarlyExit):
    """Keeps the hidden states of its draft steps at an earlier exit, where it is told one."""

    split: int | None = None
    states: list[Tensor]

    def _run_early(self, call: Call, hidden: Tensor, span: Span) -> Tensor:
        if self.split is None:
            return super()._run_early(call, hidden, span)
        window = call.cache.window(span)
        hidden = call.decoder.run(hidden, 0, self.split, span, window)
        self.states.append(hidden[:, :1])  # of a chain: one token a pass
        return call.decoder.run(hidden, self.split, self.exit_layer, span, window)


class Watching(Switching):
    """Drafts as it is told to; when asked to, reads one early exit on the same tokens.

    No layer is run that the round would not run anyway: the pass through the model's own layers is split at
    the watched exit, within the draft steps where an exit behind it drafts, else at verification.
    """

    watched: int | None = None
    """Exit layer to read in the next round, which drafts a chain."""
    _seen: _Watched | None = None

    def __init__(self, view: LowBitView | None = None) -> None:
        super().__init__(view)
        self.early = self._drafter = self._split = _SplitExit(1)

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        watched, split = self.watched, self._split
        early = watched is not None and not self.arm.low_bit and watched < self.arm.exit_layer
        split.split, split.states = watched if early else None, []
        draft = super().draft(call, length, graft)
        if watched is None:
            return draft
        if early:
            self._note(call, draft, watched, torch.cat(split.states, dim=1))
            return draft
        if watched > draft.exact_layers:
            draft = replace(draft, hidden=self._run_on(call, draft, watched), exact_layers=watched)
        self._note(call, draft, watched, draft.hidden)
        return draft

    def outcome(self) -> tuple[int, int, int, float] | None:
        """(exit layer, tokens it agreed on, tokens, seconds) of the round just committed, if one was read."""
        seen, self._seen = self._seen, None
        return None if seen is None else seen.outcome()

    def _run_on(self, call: Call, draft: Draft, last: int) -> Tensor:
        """Hidden states [B, n+1, D] run on from the draft's last exact layer to layer `last`, as verification
        would."""
        count = draft.hidden.shape[1]
        span = draft.span.narrow(0, call.shapes.width(len(draft.hidden), count))
        hidden = _widened(draft.hidden, span.width)
        return call.decoder.run(hidden, draft.exact_layers, last, span, call.cache.window(span))[:, :count]

    def _note(self, call: Call, draft: Draft, exit_layer: int, hidden: Tensor) -> None:
        """Keep what the exit would have chosen after each token of the round."""
        began, count = _now(hidden), hidden.shape[1]
        padded = _widened(hidden, call.shapes.width(len(hidden), count))
        logits = call.decoder.logits(padded)[:, :count]
        scores = call.processors(logits, call.rows, draft.tokens, draft.tree.paths)
        chosen = [call.mode.candidates(scores[:, j : j + 1], j, 1)[:, 0, 0] for j in range(count)]
        rows = call.rows
        self._seen = _Watched(
            exit_layer, torch.stack(chosen, dim=1), rows, list(rows.active), list(rows.generated)
        )
        self._seen.seconds = _now(hidden) - began


@dataclass
class _Watched:
    """What an exit chose in a round whose outcome is not known yet."""

    exit_layer: int
    chosen: Tensor
    """[B, n]"""
    rows: Rows
    active: list[int]
    generated: list[int]
    seconds: float = 0.0

    def outcome(self) -> tuple[int, int, int, float]:
        """Compare with what has been committed since."""
        hits = trials = 0
        for i, row in enumerate(self.active):
            first = self.rows.prompt_width + self.generated[row]
            count = min(self.rows.generated[row] - self.generated[row], self.chosen.shape[1])
            hits += int((self.chosen[i, :count] == self.rows.sequences[row, first : first + count]).sum())
            trials += count
        return self.exit_layer, hits, trials, self.seconds


def _widened(hidden: Tensor, width: int) -> Tensor:
    """hidden [B, n, D] with its last column repeated up to `width`."""
    return torch.cat([hidden, hidden[:, -1:].expand(-1, width - hidden.shape[1], -1)], dim=1)


def _now(tensor: Tensor) -> float:
    """The time at which everything asked of `tensor`'s device is done: a round in a hundred waits for it."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()

"""What a call gives back beside its tokens: scores, logits and the cache, as the model's own loop would."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from selfspec.cache import KVCache
from selfspec.call import Call
from selfspec.carrying import add
from selfspec.modes import Mode
from selfspec.processing import Processors
from selfspec.round import Draft, Verdict
from selfspec.rows import Rows


class KeepingCache(KVCache):
    """A cache that sets aside the K/V of rows that finish."""

    def __init__(self, rows: int, n_layers: int, capacity: int) -> None:
        super().__init__(rows, n_layers, capacity)
        self._order = list(range(rows))
        self._aside: dict[int, list[tuple[Tensor | None, Tensor | None]]] = {}

    def keep(self, rows: Tensor) -> None:
        kept = [self._order[i] for i in rows.tolist()]
        for place, row in enumerate(self._order):
            if row not in kept:
                self._aside[row] = self._of_row(place, copied=True)
        self._order = kept
        super().keep(rows)

    def restore(self) -> None:
        """Bring all rows back, in the order in which they came."""
        if not self._aside:
            return
        for place, row in enumerate(self._order):
            self._aside[row] = self._of_row(place)
        layers = [self._aside[row] for row in sorted(self._aside)]
        self.rows = len(layers)
        for index in range(len(self.keys)):
            self.keys[index], self.values[index] = (
                self._stacked([row[index][part] for row in layers]) for part in (0, 1)
            )
        self._order, self._aside = list(range(self.rows)), {}

    def _of_row(self, place: int, copied: bool = False) -> list[tuple[Tensor | None, Tensor | None]]:
        def one(tensor: Tensor | None) -> Tensor | None:
            part = None if tensor is None else tensor[place]
            return part.clone() if copied and part is not None else part

        return [(one(key), one(value)) for key, value in zip(self.keys, self.values, strict=True)]

    def _stacked(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        whole = [part for part in parts if part is not None]
        if not whole:
            return None
        out = whole[0].new_zeros(len(whole), whole[0].shape[0], self.capacity, whole[0].shape[2])
        for row, part in enumerate(whole):
            out[row, :, : part.shape[1]] = part
        return out


class Record:
    """Keeps the target's logits and scores behind every committed token.

    `processors` and `mode` stand in a call for its own ones, and hand everything on to them.
    """

    def __init__(self, rows: Rows, processors: Processors, mode: Mode) -> None:
        self._rows = rows
        self.processors = _Overheard(processors)
        self.mode = _Recorded(mode, self)
        self._kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in rows.generated]
        """By row and step, logits and scores [V]."""

    def note(self, verdict: Verdict, scores: Tensor) -> None:
        """Take up the scores [B, n+1, V] along what was accepted; the logits are those heard last."""
        logits = self.processors.logits
        for i, row in enumerate(self._rows.active):
            count = int(verdict.accepted[i]) + 1
            path = torch.arange(count, device=scores.device)
            if verdict.columns is not None:
                path = verdict.columns[i, :count]
            self._kept[row] += zip(logits[i, path].float(), scores[i, path], strict=True)

    def extend(self, row: int, logits: Tensor, scores: Tensor) -> None:
        """Take up what comes after a row's end: logits and scores [n, V]."""
        self._kept[row][self._rows.generated[row] :] = zip(logits, scores, strict=True)

    def steps(self, scores: bool) -> tuple[Tensor, ...]:
        """Scores (or logits) [B, V] of every step, as generate() returns them."""
        part = 1 if scores else 0
        steps = range(max(self._rows.generated))
        return tuple(torch.stack([row[step][part] for row in self._kept]) for step in steps)

    def scores_so_far(self, step: int) -> Tensor:
        """Scores [B, V] of a step; 0 in rows that have stopped before, whose own are found when all have."""
        scores = torch.stack([row[min(step, len(row) - 1)][1] for row in self._kept])
        scores[list(self._rows.stops)] = 0.0
        return scores


class _Overheard(Processors):
    """Remembers the logits that it was asked about last: in a round those of verification."""

    def __init__(self, processors: Processors) -> None:
        self._processors = processors
        self.logits = torch.empty(0)

    def __call__(
        self, logits: Tensor, rows: Rows, candidates: Tensor, paths: Sequence[Sequence[int]]
    ) -> Tensor:
        self.logits = logits
        return self._processors(logits, rows, candidates, paths)


class _Recorded:
    """A mode whose verdicts go into a record."""

    def __init__(self, mode: Mode, record: Record) -> None:
        self._mode = mode
        self._record = record
        self.matching = mode.matching

    def open(self, positions: Tensor) -> None:
        self._mode.open(positions)

    def candidates(self, scores: Tensor, depth: int, count: int) -> Tensor:
        return self._mode.candidates(scores, depth, count)

    def noisy(self, scores: Tensor, depth: int) -> Tensor:
        return self._mode.noisy(scores, depth)

    def accept(self, draft: Draft, scores: Tensor) -> Verdict:
        verdict = self._mode.accept(draft, scores)
        self._record.note(verdict, scores)
        return verdict

    def keep(self, rows: Tensor) -> None:
        self._mode.keep(rows)


@torch.inference_mode()
def run_on(call: Call, cache: KeepingCache, record: Record | None) -> None:
    """Run the rows that ended early on over pad tokens, as the model's own loop does until all have ended.

    Their K/V stand in the cache that is returned, their scores among those of all rows.
    """
    rows, counts = call.rows, call.rows.generated
    longest = max(counts)
    cache.restore()
    rows.active = list(range(len(counts)))
    if min(counts) == longest:
        return
    text, ends, starts = rows.output(), rows.ends(), rows.cached
    heads: list[Tensor] = []
    for first in range(0, longest - min(counts), call.prefill_chunk):
        width = min(call.prefill_chunk, longest - min(counts) - first)
        columns = torch.tensor(ends, device=text.device)[:, None] - 1 + first
        columns = columns + torch.arange(width, device=text.device)
        span = call.span([start + first for start in starts], width)
        hidden = call.decoder.embed(text.gather(1, columns.clamp(max=text.shape[1] - 1)), span)
        hidden = call.decoder.run(hidden, 0, call.decoder.n_layers, span, cache.window(span))
        if record is not None:
            heads.append(call.decoder.logits(hidden))
    if record is None:
        return
    logits = torch.cat(heads, dim=1)
    for row, count in enumerate(counts):
        after = longest - count
        if after:
            rows.active = [row]
            own = logits[row : row + 1, :after]
            pads = text.new_full((1, after), rows.pad_token)
            scores = call.processors(own, rows, pads, [range(i) for i in range(after)])
            record.extend(row, own[0].float(), scores[0])


def hand_over(call: Call, cache: DynamicCache, known: int) -> DynamicCache:
    """Add the K/V of a call that is over to a cache in Hugging Face's form, which holds `known` columns."""
    rows = call.rows
    columns = rows.unseen + rows.prompt_width + max(rows.generated) - 1
    add(cache, call.cache, rows.pads, known, columns)
    return cache

"""Time real rounds: every cell (E, K, rows, context) in turn, inside ordinary calls of the engine.

Rounds run as those of calls do: on a device alone, from captured graphs, where the engine can. How a round
drafts may change between rounds without changing the text, so a plan of cells runs interleaved within one
text: a slow stretch of a noisy machine falls on all of them alike. Calls on prompts as they are and on
lengthened ones take turns. Whatever a round costs is in the time, our own work included.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layer_skip.low_bit import LowBitView
from selfspec.call import Call
from selfspec.drafting import StopRule, Switching
from selfspec.round import Draft, Step
from selfspec.tuning.cells import Cell, Timing
from selfspec.tuning.replay import shape_of
from selfspec.tuning.running import Engine

_NEVER_STOPS = StopRule((0.0,))
"""Looks at confidence and never stops: what looking costs."""
_WARM_UP = 2
"""Sweeps over the cells that do not count."""
_LONG_CONTEXT = 512
"""Tokens that prompts are lengthened to, where the model has room."""


def time_rounds(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    cells: Sequence[Cell],
    *,
    rows: int = 1,
    max_new_tokens: int = 128,
    repeats: int = 5,
    generate_arguments: Mapping[str, Any] | None = None,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> list[Timing]:
    """Time every cell `repeats` times at batch size `rows`, along the texts that follow `prompts`.

    Args:
        prompts: token ids, taken `rows` at a time, and again from the front when they run out.
        generate_arguments: the workload's; texts run to their full length.

    Raises:
        ValueError: there are no prompts; a cell by a low-bit view, and the engine has none.
    """
    if not prompts:
        raise ValueError("there are no prompts: timing needs at least one")
    arguments = {**(generate_arguments or {}), "max_new_tokens": max_new_tokens, "eos_token_id": None}
    by_context = defaultdict(list)
    for cell in cells:
        by_context[cell.context].append(cell)
    watches = {
        context: Stopwatch(engine.view, _plan(own, repeats + _WARM_UP), _WARM_UP * len(own))
        for context, own in by_context.items()
    }
    taken = 0
    while waiting := {context: watch for context, watch in watches.items() if not watch.done}:
        group = [prompts[(taken + i) % len(prompts)] for i in range(rows)]
        taken += rows
        for context, watch in waiting.items():
            advance(f"timing, batch {rows}", 0)
            texts = [lengthened(prompt, context) for prompt in group]
            try:
                engine.run(texts, watch, watch, **arguments)
            except _EnoughError:
                continue
    return [timing for watch in watches.values() for timing in watch.medians(rows)]


def long_context(prompts: Sequence[Sequence[int]], max_new_tokens: int, positions: int | None) -> int:
    """Tokens to lengthen prompts to, so that time by context shows; 0 where the model has no room for it."""
    longest = max(map(len, prompts))
    wanted = max(_LONG_CONTEXT, 3 * (longest + max_new_tokens))
    room = wanted if positions is None else min(wanted, positions - max_new_tokens)
    return room if room >= 2 * (longest + max_new_tokens) else 0


def lengthened(prompt: Sequence[int], context: int) -> Sequence[int]:
    """The prompt said over and over up to `context` tokens; as it is where it has as many."""
    if len(prompt) >= context:
        return prompt
    return (list(prompt) * -(-context // len(prompt)))[:context]


class _EnoughError(Exception):
    """The plan is done: the rest of the text is of no interest."""


def _plan(cells: Sequence[Cell], sweeps: int) -> Iterator[Cell]:
    """Every cell once a sweep, in another order each time.

    First the short drafts: on a device a round takes a captured one that is longer in place of its own.
    """
    generator = torch.Generator().manual_seed(0)
    yield from sorted(cells, key=lambda cell: cell.draft_length)
    for _ in range(sweeps - 1):
        for index in torch.randperm(len(cells), generator=generator).tolist():
            yield cells[index]


class Stopwatch(Switching):
    """Drafter and pacer in one: it says what the next round is, and notes what it took.

    Args:
        view: for the cells that draft by it.
        plan: cells, one a round.
        ignored: so many rounds warm up.
    """

    def __init__(self, view: LowBitView | None, plan: Iterator[Cell], ignored: int) -> None:
        super().__init__(view)
        self.done = False
        self._plan, self._ignored = plan, ignored
        self._cell, self._again = Cell(1, 0), False
        self._context = self._rows = 0
        self._draft_seconds = math.nan
        self._seen: dict[tuple[Cell, int], list[tuple[float, float, float]]] = defaultdict(list)

    def draft_length(self, remaining: int) -> int:
        cell = self._cell if self._again else next(self._plan, None)
        if cell is None:
            self.done = True
            raise _EnoughError
        self._cell = cell
        self.turn_to(cell.arm, shape_of(cell.siblings), _NEVER_STOPS if cell.checked else None)
        return min(cell.draft_length, remaining - 1)

    def plan(self, call: Call, length: int) -> Step:
        self._note(call, math.nan)
        return super().plan(call, length)

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        began = time.perf_counter()
        draft = super().draft(call, length, graft)
        if draft.tokens.is_cuda:
            torch.cuda.synchronize(draft.tokens.device)
        self._note(call, time.perf_counter() - began)
        return draft

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        # Captured in this round, its graph is there for the next one.
        self._again = math.isnan(seconds)
        if self._again:
            return
        if self._ignored:
            self._ignored -= 1
        elif length == self._cell.draft_length:  # the end of a text cuts a round short
            self._seen[self._cell, self._rows].append((self._context, self._draft_seconds, seconds))

    def medians(self, rows: int) -> list[Timing]:
        """What was timed, of rounds with all rows active."""
        return [
            Timing(cell, rows, statistics.fmean(c), statistics.median(d), statistics.median(s), len(s))
            for (cell, active), values in self._seen.items()
            if active == rows
            for c, d, s in [tuple(zip(*values, strict=True))]
        ]

    def _note(self, call: Call, draft_seconds: float) -> None:
        self._draft_seconds = draft_seconds
        self._context, self._rows = max(call.rows.cached), len(call.rows.active)

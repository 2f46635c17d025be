"""Time real rounds: every cell (E, K, rows, context) in turn, inside ordinary calls of the engine.

Exit layer and draft length may change between rounds without changing the text, so a plan of cells runs
interleaved within one text: a slow stretch of a noisy machine falls on all of them alike. Whatever a round
costs is in the time, the engine's own work included.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from selfspec.call import Call, Drafter
from selfspec.config import SpeculationConfig
from selfspec.drafting import EarlyExit, StopRule
from selfspec.pacing import Pacer
from selfspec.round import Draft
from selfspec.speculation import Speculation
from selfspec.stats import Stats
from selfspec.tuning.record import left_padded, pad_token, run_engine
from selfspec.tuning.round_costs import Cell, Timing

_NEVER_STOPS = StopRule((0.0,))
"""Looks at confidence and never stops: what looking costs."""
_FIRST = Cell(1, 0)
_WARM_UP = 2
"""Sweeps over the cells that do not count."""


def time_rounds(
    model: Any,
    prompts: Sequence[Sequence[int]],
    cells: Sequence[Cell],
    *,
    rows: int = 1,
    max_new_tokens: int = 128,
    repeats: int = 5,
    deterministic: bool = True,
    generate_arguments: Mapping[str, Any] | None = None,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> list[Timing]:
    """Time every cell `repeats` times at batch size `rows`, along the texts that follow `prompts`.

    Args:
        prompts: token ids, taken `rows` at a time, and again from the front when they run out.
        generate_arguments: the workload's; texts run to their full length.

    Raises:
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("there are no prompts: timing needs at least one")
    watch = _Stopwatch(_plan(cells, repeats + _WARM_UP), _WARM_UP * len(cells))
    arguments: dict[str, Any] = {
        **(generate_arguments or {}),
        "max_new_tokens": max_new_tokens,
        "eos_token_id": None,
        "pad_token_id": pad_token(model),
    }
    taken = 0
    while not watch.done:
        advance(f"timing, batch {rows}", 0)
        group = [prompts[(taken + i) % len(prompts)] for i in range(rows)]
        inputs = left_padded(group, pad_token(model), model.device)
        taken += rows
        try:
            run_engine(model, _Timing(watch, deterministic), 0, **arguments, **inputs)
        except _EnoughError:
            break
    return watch.medians(rows)


class _EnoughError(Exception):
    """The plan is done: the rest of the text is of no interest."""


def _plan(cells: Sequence[Cell], sweeps: int) -> Iterator[Cell]:
    """Every cell once a sweep, in another order each time."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(sweeps):
        for index in torch.randperm(len(cells), generator=generator).tolist():
            yield cells[index]


class _Timing(Speculation):
    """Rounds as a stopwatch plans them."""

    def __init__(self, watch: _Stopwatch, deterministic: bool) -> None:
        super().__init__(SpeculationConfig(deterministic=deterministic))
        self._watch = watch

    def strategy(self, *_: Any) -> tuple[Drafter, Pacer, Stats, None]:
        return self._watch, self._watch, Stats(), None


@dataclass
class _Stopwatch:
    """Drafter and pacer in one: it says what the next round is, and notes what it took."""

    plan: Iterator[Cell]
    ignored: int
    done: bool = False
    _cell: Cell = _FIRST
    _context: int = 0
    _rows: int = 0
    _draft_seconds: float = 0.0
    _seen: dict[tuple[Cell, int], list[tuple[float, float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def draft_length(self, remaining: int) -> int:
        cell = next(self.plan, None)
        if cell is None:
            self.done = True
            raise _EnoughError
        self._cell = cell
        return min(cell.draft_length, remaining - 1)

    def draft(self, call: Call, length: int) -> Draft:
        began = time.perf_counter()
        rule = _NEVER_STOPS if self._cell.checked else None
        draft = EarlyExit(self._cell.exit_layer, rule=rule).draft(call, length)
        if draft.tokens.is_cuda:
            torch.cuda.synchronize(draft.tokens.device)
        self._draft_seconds = time.perf_counter() - began
        self._context, self._rows = max(call.rows.cached), len(call.rows.active)
        return draft

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        if self.ignored:
            self.ignored -= 1
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

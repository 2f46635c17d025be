"""Everything that one generate call holds: all state of a call lives here, so calls may run side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.span import Span
from selfspec.cache import KVCache
from selfspec.modes import Mode
from selfspec.pacing import Pacer
from selfspec.processing import Processors
from selfspec.round import Draft, Round
from selfspec.rows import RoundEvent, Rows
from selfspec.shapes import ShapePlan
from selfspec.stats import Stats


class Drafter(Protocol):
    """A draft strategy (`selfspec.drafting` has one file for each)."""

    def draft(self, call: "Call", round_: Round) -> Draft:
        """Draft up to `round_.length` tokens for every active row of `call`."""


@dataclass
class Call:
    """The parts of one generate call, chosen before its loop starts."""

    decoder: LayeredDecoder
    cache: KVCache
    rows: Rows
    processors: Processors
    mode: Mode
    drafter: Drafter
    pacer: Pacer
    shapes: ShapePlan
    prefill_alone: bool
    """Prefill every prompt by itself, so that its K/V do not depend on who shares the batch."""
    stats: Stats = field(default_factory=Stats)
    on_round: Callable[[RoundEvent], None] | None = None
    on_commit: Callable[[Rows], None] | None = None
    """Called after every round, for streamers."""

    def span(self, starts: list[int], width: int) -> Span:
        """Positions [start, start + width) of every row, over cache slots that are made to exist."""
        key_length = self.shapes.key_length(max(starts) + width)
        self.cache.reserve(key_length)
        device = self.rows.sequences.device
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        return self.decoder.span(positions, key_length, starts[0] if len(set(starts)) == 1 else None)

    def open_round(self) -> Round:
        """Choose K and lay out the round's positions."""
        starts = self.rows.cached
        length = self.pacer.draft_length(self.rows.remaining)
        step_width = self.shapes.width(len(starts), 1)
        width = max(length + step_width, self.shapes.width(len(starts), length + 1))
        span = self.span(starts, width)
        self.mode.open(span.positions[:, : length + 1] + 1)
        return Round(length, span, step_width)

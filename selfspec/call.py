"""Everything that one generate call holds: all state of a call lives here, so calls may run side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.span import Span
from selfspec.cache import KVCache
from selfspec.drafting.protocol import Drafter
from selfspec.modes import Mode
from selfspec.pacing import Pacer
from selfspec.processing import Processors
from selfspec.rows import RoundEvent, Rows
from selfspec.shapes import ShapePlan
from selfspec.stats import Stats


@dataclass(frozen=True)
class Round:
    """The shape of one round, fixed before it starts."""

    length: int
    """K of this round."""
    span: Span
    """Positions from the last committed token on: K+1 of them, and spare ones that pad the passes."""
    step_width: int
    """Columns of a draft step: one real, the others padding."""


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

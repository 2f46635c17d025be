"""Everything that one generate call holds: all state of a call lives here, so calls may run side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.span import Span
from selfspec.cache import KVCache
from selfspec.lockstep import Lockstep
from selfspec.modes import Mode
from selfspec.pacing import Pacer
from selfspec.processing import Processors
from selfspec.round import Draft, Step
from selfspec.rows import RoundEvent, Rows
from selfspec.shapes import ShapePlan
from selfspec.stats import Stats
from selfspec.tree import Tree

PREFILL_CHUNK = 512
"""Most prompt tokens of a prefill pass: bounds the mask, m x S elements."""
PREFILL_CHUNK_ON_GPU = 2048
"""The same of one row on a GPU, where fewer take as long: some 65 ms for 32 layers, launched from Python."""


class Drafter(Protocol):
    """A draft strategy (`selfspec.drafting` has one file for each)."""

    def draft(self, call: "Call", length: int) -> Draft:
        """Candidates up to `length` tokens deep for every active row of `call`; none at all for 0."""


class Planner(Protocol):
    """A drafter that can say beforehand what a round drafts, for rounds that run on the device alone."""

    def plan(self, call: "Call", length: int) -> Step:
        """What the next round drafts, up to `length` tokens deep."""


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
    prefill_chunk: int = PREFILL_CHUNK
    embeddings: Tensor | None = None
    """[B, unseen + P, D] in place of the prompts' own."""
    stats: Stats = field(default_factory=Stats)
    watch: Callable[[int, Tensor], None] | None = None
    """Shown the hidden states behind every layer during prefill, see `LayeredDecoder.run`."""
    on_round: Callable[[RoundEvent], None] | None = None
    lockstep: Lockstep | None = None
    """Asks the caller's own stopping criteria, where there are some."""
    on_commit: Callable[[Rows], None] | None = None
    """Called after every round, for streamers."""

    def span(self, starts: list[int], width: int, tree: Tree | None = None) -> Span:
        """Slots [start, start + width) of every row, made to exist: consecutive tokens, or a tree's."""
        key_length = self.shapes.key_length(max(starts) + width)
        self.cache.reserve(key_length)
        device = self.rows.sequences.device
        start = starts[0] if len(set(starts)) == 1 else None
        first = torch.tensor(starts, device=device)[:, None]
        if tree is None or tree.is_chain:
            return self.decoder.span(first + torch.arange(width, device=device), key_length, start)
        positions = first + torch.tensor(tree.padded_depths(width), device=device)
        return self.decoder.span(positions, key_length, start, tree.ancestors(width).to(device))

    def embed_prompt(self, group: slice, span: Span) -> Tensor:
        """Hidden states [B', m, D] in front of layer 0 for the prompts of a group of rows.

        A shorter row runs on past its prompt: what that stores is scratch.
        """
        rows = self.rows
        pads = torch.tensor(rows.pads[group], device=rows.sequences.device)[:, None]
        columns = (span.positions + pads).clamp(max=rows.unseen + rows.prompt_width - 1)
        if self.embeddings is None:
            return self.decoder.embed(rows.sequences[group].gather(1, columns - rows.unseen), span)
        index = columns[..., None].expand(-1, -1, self.embeddings.shape[2])
        return self.decoder.place(self.embeddings[group].gather(1, index), span)

    def open(self, depth: int) -> None:
        """Open a round whose candidates are at most `depth` tokens deep."""
        first = torch.tensor(self.rows.cached, device=self.rows.sequences.device)[:, None] + 1
        self.mode.open(first + torch.arange(depth + 1, device=first.device))

    def place(self, tree: Tree) -> Span:
        """Where these candidates stand, and room for the padding of their passes."""
        rows = len(self.rows.active)
        passes = [(0, tree.size), (tree.n_inner, tree.size), *((run.first, run.last) for run in tree.levels)]
        width = max(first + self.shapes.width(rows, last - first) for first, last in passes)
        return self.span(self.rows.cached, width, tree)

    def lay_out(self, tree: Tree) -> Span:
        """Open a round with these very candidates, and say where they stand."""
        self.open(tree.depth)
        return self.place(tree)

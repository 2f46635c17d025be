"""Record a low-bit view: what it would draft at every depth of a round, along the target's own text.

A view reads the exact K/V of the committed text, and its own for the tokens of the round: the last committed
one and what it has drafted since. So its choice depends on how deep the round is, and one recording would
overstate it. There is one for each draft position. Tokens before the first wrong one are the text's, so all
positions of a round are read in one causal pass of the view over the text that comes.

The text is known, so the target runs over it once, many tokens a pass. Then the view reads the rounds from
the last to the first: what it writes to the cache is past all that an earlier round may see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.call import Call
from selfspec.drafting import EarlyExit
from selfspec.drafting.expansion import confidence_of
from selfspec.pacing import FixedLength
from selfspec.round import Arm, Draft
from selfspec.shapes import FASTEST
from selfspec.tree import chain
from selfspec.tuning.record import CHUNK, groups_of, ranked
from selfspec.tuning.recording import TOP, Choices, Recording, joined
from selfspec.tuning.running import run_engine

_NEAR_TIES = 0.25
"""Share of texts that may begin otherwise where rounding depends on how many are written together."""
_TARGET_WIDTH = 16
"""Tokens of a pass of the target over a known text: as in a verification, rows are bit-equal there."""


def record_view(
    model: Any,
    view: LowBitView,
    prompts: Sequence[Sequence[int]],
    recording: Recording,
    *,
    longest: int = 12,
    exits: Sequence[int] | None = None,
    deterministic: bool = True,
    generate_arguments: Mapping[str, Any] | None = None,
    chunk: int = CHUNK,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> Recording:
    """Read a view along the texts of `recording`, at each draft position up to `longest`.

    `replay` then tells the rounds of real runs up to rounding: the view's passes are wider here than in a
    draft, and nothing pads those to shapes with bit-equal rows. Where the view multiplies in fp32 that makes
    no difference; in bf16, as on a CPU for a model of any dtype, a near-tie goes the other way now and then,
    which a few prompts show.

    Args:
        prompts: those that `recording` was made of, in its order, and recorded with the same arguments.
        longest: K of the longest draft to replay.
        exits: layers of the view to draft with (default: all of it).

    Raises:
        ValueError: the view has no such layers, or the model does not write the texts of the recording.
    """
    layers = tuple(sorted({view.n_layers} if exits is None else set(exits)))
    if not layers or not 1 <= layers[0] <= layers[-1] <= view.n_layers:
        raise ValueError(f"exits={list(layers)}: this view's are 1 to {view.n_layers}")
    if longest < 1:
        raise ValueError(f"longest={longest}: allowed is 1 and more")
    arguments = {**(generate_arguments or {}), "max_new_tokens": recording.max_new_tokens}
    longest = min(longest, recording.max_new_tokens)
    groups = groups_of(prompts, chunk, recording.max_new_tokens)
    found: dict[int, Recording] = {}
    for group in groups:
        advance("recording the view", len(groups))
        reader = ViewReader(view, layers, longest, recording.of_prompts(group))
        with suppress(ReadError):
            run_engine(
                model,
                [prompts[i] for i in group],
                reader,
                FixedLength(0),
                seed=recording.seed,
                deterministic=deterministic,
                **arguments,
            )
        read = reader.recording()
        found |= {i: read.of_prompts([place]) for place, i in enumerate(group)}
    return joined([found[i] for i in range(len(prompts))])


@dataclass
class ViewReader:
    """A drafter that drafts nothing: before the first round it runs a view over the texts to come."""

    view: LowBitView
    exits: tuple[int, ...]
    longest: int
    texts: Recording
    """What every row of the call is going to say."""
    _read: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """Of every round: tokens said before, candidates [X, n, B, TOP] and confidences [X, n, B]."""

    def draft(self, call: Call, length: int) -> Draft:
        """Read the view where every round may begin, then leave one to the target, as a check.

        Raises:
            ReadError: that is done.
            ValueError: the target wrote other texts than `texts`.
        """
        rows, known = call.rows, self.texts.tokens
        if self._read:
            first = rows.sequences[:, rows.prompt_width].cpu()
            others = int((first != known[:, 0].to(first)).sum())
            if others > (0 if call.shapes.exact else max(1, int(_NEAR_TIES * len(first)))):
                raise ValueError("the model wrote other texts than were recorded: record them again")
            raise ReadError
        end = int(self.texts.lengths.max())
        columns = slice(rows.prompt_width, rows.prompt_width + end)
        rows.sequences[:, columns] = known[:, :end].clamp(min=0).to(rows.sequences)
        self._run_target(call, end)
        decoder = self.view.of(call.decoder)
        for step in reversed(range(end)):
            rows.generated = [step] * len(rows.generated)
            self._read.append((step, *self._round(call, decoder, step, end)))
        return EarlyExit(1).draft(call, 0)

    def recording(self) -> Recording:
        """What was read."""
        shape = (len(self.exits), self.longest, *self.texts.tokens.shape)
        candidates = torch.full((*shape, TOP), -1, dtype=torch.int32)
        confidence = torch.zeros(shape)
        for step, best, chance in self._read:
            for j in range(chance.shape[1]):
                candidates[:, j, :, step + j] = best[:, j]
                confidence[:, j, :, step + j] = chance[:, j]
        choices = {
            Arm(e, low_bit=True): Choices(*read)
            for e, *read in zip(self.exits, candidates, confidence, strict=True)
        }
        return replace(self.texts, choices=choices)

    def _run_target(self, call: Call, end: int) -> None:
        """Exact K/V of the texts, in passes as wide as a verification's."""
        rows = call.rows
        for step in range(0, end, _TARGET_WIDTH):
            rows.generated = [step] * len(rows.generated)
            width = call.shapes.width(len(rows.active), min(_TARGET_WIDTH, end - step))
            span = call.span(rows.cached, width)
            first = rows.prompt_width + step - 1
            nodes = rows.sequences[:, first : first + width]
            hidden = call.decoder.embed(nodes, span)
            call.decoder.run(hidden, 0, call.decoder.n_layers, span, call.cache.window(span))

    def _round(self, call: Call, decoder: LayeredDecoder, step: int, end: int) -> tuple[Tensor, Tensor]:
        """Candidates [X, n, B, TOP] and confidences [X, n, B] of a round that begins after `step` tokens."""
        rows, count = call.rows, min(self.longest, end - step)
        tree = chain(count)
        place = call.lay_out(tree).narrow(0, count)
        place = place.shortened(FASTEST.key_length(max(rows.cached) + count))
        first = rows.prompt_width + step - 1
        nodes, known = (rows.sequences[:, at : at + count] for at in (first, first + 1))
        hidden, window = decoder.embed(nodes, place), call.cache.window(place)
        done, candidates, confidences = 0, [], []
        for exit_layer in self.exits:
            hidden = decoder.run(hidden, done, exit_layer, place, window)
            done = exit_layer
            scores = call.processors(decoder.logits(hidden), rows, known, tree.paths[:count])
            best = torch.cat([ranked(call, scores[:, j : j + 1], j) for j in range(count)], dim=1)
            chance = confidence_of(best[:, :, 0].flatten(), scores.flatten(0, 1)).view(len(best), count)
            candidates.append(best.transpose(0, 1))
            confidences.append(chance.t())
        return torch.stack(candidates).int().cpu(), torch.stack(confidences).cpu()


class ReadError(Exception):
    """The view has been read: the rest of the call is of no interest."""

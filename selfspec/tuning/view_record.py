"""Record a low-bit view: what it would draft at every depth of a round, along the target's own text.

A view reads the exact K/V of the committed text, and its own for the tokens of the round: the last committed
one and what it has drafted since. So its choice depends on how deep the round is, and one recording would
overstate it. There is one for each draft position. Tokens before the first wrong one are the text's, so all
positions of a round are read in one causal pass of the view over the text that comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from selfspec.round import Draft
from selfspec.rows import Rows
from selfspec.shapes import FASTEST
from selfspec.tree import chain
from selfspec.tuning.record import CHUNK, groups_of, ranked, written
from selfspec.tuning.recording import TOP, Recording, joined
from selfspec.tuning.running import run_engine


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
) -> tuple[Recording, ...]:
    """Read a view along the texts of `recording`: a recording for each draft position up to `longest`.

    `replay` takes them in place of one recording. It then tells the rounds of real runs up to rounding: the
    view's passes are wider here than in a draft, and nothing pads those to shapes with bit-equal rows.

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
    groups = groups_of(prompts, chunk)
    found: dict[int, list[Recording]] = {}
    for group in groups:
        advance("recording the view", len(groups))
        part = recording.of_prompts(group)
        reader = ViewReader(view, layers, min(longest, part.max_new_tokens), part.tokens)
        run_engine(
            model,
            [prompts[i] for i in group],
            reader,
            FixedLength(0),
            seed=recording.seed,
            deterministic=deterministic,
            **arguments,
        )
        depths = reader.recordings(part)
        found |= {i: [each.of_prompts([place]) for each in depths] for place, i in enumerate(group)}
    by_prompt = [found[i] for i in range(len(prompts))]
    return tuple(joined(parts) for parts in zip(*by_prompt, strict=True))


@dataclass
class ViewReader:
    """A drafter that drafts nothing: it runs a view over the tokens that the target will choose next."""

    view: LowBitView
    exits: tuple[int, ...]
    longest: int
    texts: Tensor
    """[R, N]: what every row is going to say."""
    _decoder: LayeredDecoder | None = None
    _steps: list[tuple[int, list[int], Tensor, Tensor]] = field(default_factory=list)
    """Of every round: tokens said before, the rows, candidates [X, B, n, TOP] and confidences [X, B, n]."""
    _rows: Rows | None = None

    def draft(self, call: Call, length: int) -> Draft:
        """Read the view at every depth of a round that begins here, then leave the round to the target."""
        self._read(call)
        return EarlyExit(1).draft(call, 0)

    def recordings(self, texts: Recording) -> tuple[Recording, ...]:
        """What was read, by draft position.

        Raises:
            ValueError: the target wrote other texts than `texts`.
        """
        if self._rows is not None and not torch.equal(written(self._rows), texts.tokens):
            raise ValueError("the model wrote other texts than were recorded: record them again")
        shape = (self.longest, len(self.exits), *texts.tokens.shape)
        candidates = torch.full((*shape, TOP), -1, dtype=torch.int32)
        confidence = torch.zeros(shape)
        for step, rows, best, chance in self._steps:
            for j in range(chance.shape[2]):
                candidates[j][:, rows, step + j] = best[:, :, j]
                confidence[j][:, rows, step + j] = chance[:, :, j]
        return tuple(
            replace(texts, exits=self.exits, candidates=candidates[j], confidence=confidence[j])
            for j in range(self.longest)
        )

    def _read(self, call: Call) -> None:
        rows = self._rows = call.rows
        if self._decoder is None:
            self._decoder = self.view.of(call.decoder)
        step = rows.generated[rows.active[0]]
        count = min(self.longest, rows.max_new_tokens - step)
        tree = chain(count)
        place = call.lay_out(tree).narrow(0, count)
        place = place.shortened(FASTEST.key_length(max(rows.cached) + count))
        known = self.texts[rows.active, step : step + count].clamp(min=0).to(rows.sequences)
        nodes = torch.cat([rows.last_tokens()[:, None], known[:, :-1]], dim=1)
        hidden, window = self._decoder.embed(nodes, place), call.cache.window(place)
        done, candidates, confidences = 0, [], []
        for exit_layer in self.exits:
            hidden = self._decoder.run(hidden, done, exit_layer, place, window)
            done = exit_layer
            logits = self._decoder.logits(hidden)
            scores = call.processors(logits, rows, known, tree.paths[:count])
            best = torch.cat([ranked(call, scores[:, j : j + 1], j) for j in range(count)], dim=1)
            chance = confidence_of(best[:, :, 0].flatten(), scores.flatten(0, 1))
            candidates.append(best)
            confidences.append(chance.view(len(best), count))
        found = torch.stack(candidates).int().cpu(), torch.stack(confidences).cpu()
        self._steps.append((step, list(rows.active), *found))

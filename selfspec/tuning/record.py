"""Record: one plain pass per prompt along the target's own text, with every exit read on the way.

The engine itself runs it, with a drafter that drafts nothing. So the prompts are prefilled, the scores
processed, the noise keyed and the passes shaped exactly as they are when an exit drafts: at the width of a
draft step, from hidden states that the target's own layers computed. That is what makes replay exact.

`selfspec.tuning.reading` is the quick estimate beside it, which draft="auto" makes along a call's prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from selfspec.call import Call
from selfspec.drafting.expansion import confidence_of
from selfspec.pacing import FixedLength
from selfspec.round import Arm, Draft
from selfspec.rows import Rows
from selfspec.tree import chain
from selfspec.tuning.recording import TOP, Choices, Recording, joined
from selfspec.tuning.running import run_engine

CHUNK = 32
"""Most prompts recorded together. Logits are held for one exit and one token per row at a time."""
_CHUNK_TOKENS = 32 * 256
"""Most tokens recorded together, padding included, unless one prompt's are more: bounds their K/V."""


def record(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    exits: Sequence[int] | None = None,
    seed: int = 0,
    deterministic: bool = True,
    generate_arguments: Mapping[str, Any] | None = None,
    chunk: int = CHUNK,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> Recording:
    """Read every exit along the texts that `model` writes after `prompts`.

    Args:
        prompts: token ids.
        exits: exit layers to read (default: all below the last layer).
        seed: as for `torch.manual_seed` before each prompt's own call, when sampling.
        generate_arguments: the workload's, such as do_sample and temperature. Sampling is coupled.
        advance: told before each chunk what is done, and how many chunks there are.

    Raises:
        ValueError: there are no prompts, or one that the engine refuses.
    """
    if not prompts:
        raise ValueError("there are no prompts: recording needs at least one")
    n_layers = LayeredDecoder(model).n_layers
    layers = tuple(range(1, n_layers) if exits is None else exits)
    if not layers or any(not 1 <= e < n_layers for e in layers):
        raise ValueError(f"exits={list(layers)}: this model's are 1 to {n_layers - 1}")
    arguments = {**(generate_arguments or {}), "max_new_tokens": max_new_tokens}
    groups = groups_of(prompts, chunk, max_new_tokens)
    found: dict[int, Recording] = {}
    for group in groups:
        advance("recording", len(groups))
        part = _record_group(model, [prompts[i] for i in group], layers, seed, deterministic, arguments)
        found |= {i: part.of_prompts([place]) for place, i in enumerate(group)}
    return joined([found[i] for i in range(len(prompts))])


def groups_of(prompts: Sequence[Sequence[int]], size: int, max_new_tokens: int) -> list[list[int]]:
    """Prompts of like length together, few long ones, equal ones apart: noise is keyed by their ordinal."""
    groups: list[list[int]] = []
    contents: list[set[tuple[int, ...]]] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        prompt = tuple(prompts[i])
        # They come sorted: this one is the longest so far.
        most = min(size, _CHUNK_TOKENS // (len(prompt) + max_new_tokens))
        place = next((g for g, c in enumerate(contents) if len(c) < most and prompt not in c), None)
        if place is None:
            place = len(groups)
            groups.append([])
            contents.append(set())
        groups[place].append(i)
        contents[place].add(prompt)
    return groups


def _record_group(
    model: Any,
    prompts: list[Sequence[int]],
    exits: tuple[int, ...],
    seed: int,
    deterministic: bool,
    arguments: Mapping[str, Any],
) -> Recording:
    reader = ExitReader(exits, len(prompts))
    run_engine(model, prompts, reader, FixedLength(0), seed=seed, deterministic=deterministic, **arguments)
    sampled = arguments.get("do_sample")
    sampled = model.generation_config.do_sample if sampled is None else sampled
    return reader.recording(prompts, int(arguments["max_new_tokens"]), bool(sampled), seed)


@dataclass
class ExitReader:
    """A drafter that drafts nothing: it runs the last token through all layers and reads every exit."""

    exits: tuple[int, ...]
    n_rows: int
    _rows: Rows | None = None
    _steps: list[tuple[list[int], Tensor, Tensor]] = field(default_factory=list)
    """Of every round: the rows, their candidates [X, B, TOP] and confidences [X, B]."""

    def draft(self, call: Call, length: int) -> Draft:
        """Read the exits in front of the next token of every row."""
        self._rows = call.rows
        token, tree = call.rows.last_tokens(), chain(0)
        nothing = token.new_empty(len(token), 0)
        whole = call.lay_out(tree)
        span = whole.narrow(0, call.shapes.width(len(token), 1))
        window = call.cache.window(span)
        hidden = call.decoder.embed(token[:, None].expand(-1, span.width), span)
        done, candidates, confidences = 0, [], []
        for exit_layer in (*self.exits, call.decoder.n_layers):
            hidden = call.decoder.run(hidden, done, exit_layer, span, window)
            done = exit_layer
            if exit_layer < call.decoder.n_layers:
                logits = call.decoder.logits(hidden)[:, :1]
                scores = call.processors(logits, call.rows, nothing, tree.paths)
                best = ranked(call, scores)[:, 0]
                candidates.append(best)
                confidences.append(confidence_of(best[:, 0], scores[:, 0]))
        # One copy to the host per round.
        self._steps.append(
            (list(call.rows.active), torch.stack(candidates).int().cpu(), torch.stack(confidences).cpu())
        )
        return Draft(tree, whole, nothing, hidden[:, :1], call.decoder.n_layers)

    def recording(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampled: bool, seed: int
    ) -> Recording:
        """All that was read, laid out by prompt."""
        shape = (len(self.exits), 1, self.n_rows, max_new_tokens)
        candidates = torch.full((*shape, TOP), -1, dtype=torch.int32)
        confidence = torch.zeros(shape)
        tokens = torch.full(shape[2:], -1, dtype=torch.int32)
        for step, (rows, best, chance) in enumerate(self._steps):
            candidates[:, 0, rows, step] = best
            confidence[:, 0, rows, step] = chance
        lengths = torch.zeros(self.n_rows, dtype=torch.int64)
        if self._rows is not None:
            lengths, tokens = torch.tensor(self._rows.generated), written(self._rows)
        of_prompts = torch.tensor([len(prompt) for prompt in prompts])
        choices = {
            Arm(e, low_bit=False): Choices(*read)
            for e, *read in zip(self.exits, candidates, confidence, strict=True)
        }
        return Recording(tokens, lengths, of_prompts, choices, sampled, seed)


def written(rows: Rows) -> Tensor:
    """The texts of a call that is over [R, max_new_tokens] int32; -1 past their ends."""
    tokens = rows.sequences[:, rows.prompt_width :][:, : rows.max_new_tokens].int().cpu()
    tokens[torch.arange(rows.max_new_tokens) >= torch.tensor(rows.generated)[:, None]] = -1
    return tokens


def ranked(call: Call, scores: Tensor, depth: int = 0) -> Tensor:
    """The best TOP tokens [B, 1, TOP] for processed scores [B, 1, V], as the mode itself ranks them there."""
    # The first by itself: where two are equally likely, topk may order them otherwise than a chain's argmax.
    first = call.mode.candidates(scores, depth, 1)
    others = scores.scatter(2, first, -torch.inf)
    return torch.cat([first, call.mode.candidates(others, depth, TOP - 1)], dim=2)

"""The quick choice behind "auto": one look at the first prompt and a few timed passes.

The cost model of Leviathan et al. 2022 (theorem 3.8) with the engine's own parts: a round of K drafts runs
(K+1) E + (L - E) layers and 2 K + 1 heads, and commits (1 - c^(K+1)) / (1 - c) tokens.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import exit_choices
from selfspec.cache import KVCache
from selfspec.shapes import ShapePlan

CONTEXT = 256
"""Prompt tokens that are run."""
SAMPLES = 64
"""Positions at which the exits are read."""
LEAST_GAIN = 1.03
"""Predicted speedups below this are not worth the risk."""
LONGEST = 8
"""Longest draft that is considered."""
_PRIOR_WEIGHT, _PRIOR_AGREEMENT = 4.0, 0.3
_HIGHEST = 0.99
_NOTHING: dict[int, tuple[int, int]] = {}


@dataclass(frozen=True)
class Measurement:
    """What the first prompt and a few timed passes say about a model."""

    agreement: tuple[float, ...]
    """Chance that each exit's token is the full model's, [L]."""
    samples: int
    """Positions that the agreement was counted on."""
    eta: float
    """Time of the exit head in units of a layer's."""


@dataclass(frozen=True)
class Choice:
    """Exit layer, draft length, and why."""

    exit_layer: int
    draft_length: int
    reason: str


@torch.inference_mode()
def measure(decoder: LayeredDecoder, prompt: Tensor, shapes: ShapePlan) -> Measurement:
    """Read every exit along a prompt [T] and time a layer and the head."""
    choices = exit_choices(decoder, prompt[-CONTEXT:], last=SAMPLES)
    samples = choices.tokens.shape[1]
    # A short prompt says little, so agreement is drawn towards that of an ordinary early layer.
    agreement = tuple(
        (a * samples + _PRIOR_WEIGHT * _PRIOR_AGREEMENT) / (samples + _PRIOR_WEIGHT)
        for a in choices.agreement
    )
    layer, head = time_layer_and_head(decoder, shapes)
    return Measurement(agreement, samples, head / layer)


Tallies = Mapping[int, tuple[int, int]]
"""Exit layer -> (draft tokens accepted, draft tokens that the target looked at)."""


def best(
    measured: Measurement,
    exit_layer: int | None = None,
    draft_length: int | None = None,
    seen: Tallies = _NOTHING,
) -> Choice:
    """The (E, K) with the highest predicted speed; a given E or K is kept. `seen` tells of earlier calls."""
    n_layers = len(measured.agreement)
    tested = sum(count for _, count in seen.values())
    chances = _acceptance(measured, seen)
    exits = range(1, n_layers) if exit_layer is None else [exit_layer]
    lengths = range(1, LONGEST + 1) if draft_length is None else [draft_length]
    speed, best_exit, best_length = max(
        (predicted_speedup(chances[e - 1], e, k, n_layers, measured.eta), e, k)
        for e in exits
        for k in lengths
    )
    reason = (
        f"predicted {speed:.2f}x AR at exit layer {best_exit}, draft length {best_length}: acceptance "
        f"{chances[best_exit - 1]:.2f} from {measured.samples} prompt positions and {tested} draft tokens, "
        f"head = {measured.eta:.2f} layers"
    )
    if draft_length is None and speed < LEAST_GAIN:
        return Choice(best_exit, 0, f"no exit pays ({reason})")
    return Choice(best_exit, best_length, reason)


def _acceptance(measured: Measurement, seen: Tallies) -> list[float]:
    """Chance of acceptance at every exit [L]: what the prompt said, and what drafting has seen since.

    Generated text is easier than a prompt; an exit that has not been tried is taken to gain as much as those
    that have.
    """
    misses = [1 - a for a in measured.agreement]
    expected = sum(misses[e - 1] * count for e, (_, count) in seen.items())
    found = sum(count - accepted for accepted, count in seen.values())
    weight = measured.samples
    easier = (found + weight * misses[0]) / (expected + weight * misses[0])
    chances = [1 - miss * easier for miss in misses]
    for e, (accepted, count) in seen.items():
        chances[e - 1] = (chances[e - 1] * weight + accepted) / (weight + count)
    return [min(max(chance, 0.0), _HIGHEST) for chance in chances]


def choose(
    decoder: LayeredDecoder,
    prompt: Tensor,
    shapes: ShapePlan,
    exit_layer: int | None,
    draft_length: int | None,
) -> Choice:
    """`best` on a fresh measurement."""
    return best(measure(decoder, prompt, shapes), exit_layer, draft_length)


def predicted_speedup(c: float, exit_layer: int, draft_length: int, n_layers: int, eta: float) -> float:
    """Speed over AR when each draft token is accepted with chance c given those before it.

    Args:
        eta: time of the LM head in units of a layer's.
    """
    expected = sum(c**i for i in range(draft_length + 1))
    round_cost = draft_length * exit_layer + n_layers + (draft_length + 1) * eta
    return expected * (n_layers + eta) / round_cost


def time_layer_and_head(decoder: LayeredDecoder, shapes: ShapePlan, repeats: int = 5) -> tuple[float, float]:
    """Seconds of one layer and of the exit head for one draft step of one row (medians)."""
    width = shapes.width(1, 1)
    cache = KVCache(1, decoder.n_layers, shapes.key_length(width))
    positions = torch.arange(width, device=decoder.device)[None]
    span = decoder.span(positions, cache.capacity, 0)
    hidden = decoder.embed(torch.zeros_like(positions), span)
    layers = _median_seconds(
        lambda: decoder.run(hidden, 0, decoder.n_layers, span, cache.window(span)), repeats
    )
    return layers / decoder.n_layers, _median_seconds(lambda: decoder.logits(hidden), repeats)


def _median_seconds(run: Callable[[], Tensor], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)

"""The quick choice behind "auto": one look at the first prompt and a few timed passes.

The cost model of Leviathan et al. 2022 (theorem 3.8) with the engine's own parts: a round of K drafts runs
(K+1) E + (L - E) layers and 2 K + 1 heads, and commits (1 - c^(K+1)) / (1 - c) tokens.
"""

import statistics
import time
from collections.abc import Callable
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
_PRIOR_WEIGHT, _PRIOR_AGREEMENT = 4.0, 0.3


@dataclass(frozen=True)
class Choice:
    """Exit layer, draft length, and why."""

    exit_layer: int
    draft_length: int
    reason: str


@torch.inference_mode()
def choose(
    decoder: LayeredDecoder,
    prompt: Tensor,
    shapes: ShapePlan,
    exit_layer: int | None,
    draft_length: int | None,
) -> Choice:
    """The (E, K) with the highest predicted speed on this prompt [T]; a given E or K is kept."""
    choices = exit_choices(decoder, prompt[-CONTEXT:], last=SAMPLES)
    samples = choices.tokens.shape[1]
    # A short prompt says little, so agreement is drawn towards that of an ordinary early layer.
    agreement = [
        (a * samples + _PRIOR_WEIGHT * _PRIOR_AGREEMENT) / (samples + _PRIOR_WEIGHT)
        for a in choices.agreement
    ]
    layer, head = time_layer_and_head(decoder, shapes)
    exits = range(1, decoder.n_layers) if exit_layer is None else [exit_layer]
    lengths = range(1, 9) if draft_length is None else [draft_length]
    speed, best_exit, best_length = max(
        (predicted_speedup(agreement[e - 1], e, k, decoder.n_layers, head / layer), e, k)
        for e in exits
        for k in lengths
    )
    reason = (
        f"predicted {speed:.2f}x AR at exit layer {best_exit}, draft length {best_length}: agreement "
        f"{agreement[best_exit - 1]:.2f} on {samples} positions, head = {head / layer:.2f} layers"
    )
    if draft_length is None and speed < LEAST_GAIN:
        return Choice(best_exit, 0, f"no exit pays ({reason})")
    return Choice(best_exit, best_length, reason)


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

"""What single passes cost on this machine: a few layers and the head timed once, for all calls.

For draft="auto", which compares all kinds of drafts and cannot wait. `cost_model` is for the tuner: real
rounds of early exit drafts, timed whole and fitted, which takes seconds and predicts tokens per second.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from layer_skip.decoder import LayeredDecoder
from selfspec.cache import KVCache

WIDTHS = (1, 2, 4, 8, 16, 32)
"""Tokens of a pass that are timed; in between costs are interpolated."""
_HOPELESS_FROM = 4
"""Tokens of a pass from which on, if it takes as long as so many passes of one, wider ones are not timed."""
_KEYS = 256
_TIMED_LAYERS = 2
_REPEATS = 3
_ENOUGH_SECONDS = 0.03
"""Spent on repeats of one kind of pass, from which on another costs more than it tells."""


@dataclass(frozen=True)
class PassCosts:
    """Seconds of a layer and of the head over as many tokens as WIDTHS says."""

    layer: tuple[float, ...]
    head: tuple[float, ...]

    def seconds(self, layers: int, tokens: int, heads: int = 1) -> float:
        """Seconds of a pass of `layers` layers and the head over `tokens` tokens, all rows together."""
        return layers * _interpolated(self.layer, tokens) + heads * _interpolated(self.head, tokens)


@torch.inference_mode()
def time_passes(decoder: LayeredDecoder, widths: Sequence[int] = WIDTHS) -> PassCosts:
    """Time layers and head of `decoder` (the model, or a view of it) at growing widths, or some of those.

    The least of a few repeats: what disturbs a measurement only ever adds to it. Passes of large models are
    repeated less, on a CPU the wider ones not at all: they take long enough for disturbances to even out, and
    `wrap` waits for them. Where layers take as long for a few tokens as for each of them alone, as in bf16 on
    a CPU without instructions for it, no wider pass can pay: it is taken to cost as much a token.

    Args:
        widths: some of WIDTHS, from 1 on.
    """
    layers: list[float] = []
    heads: list[float] = []
    for i, width in enumerate(widths):
        if i and widths[i - 1] >= _HOPELESS_FROM and layers[-1] >= widths[i - 1] * layers[0]:
            layers.append(layers[-1] * width / widths[i - 1])
            heads.append(heads[-1] * width / widths[i - 1])
            continue
        cache = KVCache(1, decoder.n_layers, _KEYS)
        positions = torch.arange(width, device=decoder.device)[None]
        span = decoder.span(positions, _KEYS, 0)
        hidden = decoder.embed(torch.zeros_like(positions), span)
        last = min(_TIMED_LAYERS, decoder.n_layers)

        run = partial(decoder.run, hidden, 0, last, span, cache.window(span))
        cold = i == 0 or decoder.device.type != "cpu"  # a GPU prepares kernels for every width
        layers.append(_least_seconds(run, decoder.device, cold) / last)
        heads.append(_least_seconds(partial(decoder.logits, hidden), decoder.device, cold))
    return PassCosts(tuple(layers), tuple(heads))


def _least_seconds(run: Callable[[], object], device: torch.device, cold: bool) -> float:
    """The least of up to _REPEATS runs after one that warms up.

    A long first run counts, too, and alone, unless it is `cold`: the first of its kind.
    """
    times: list[float] = []
    counted: list[float] = []
    while len(times) <= _REPEATS and sum(counted) < _ENOUGH_SECONDS:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
        counted = times[1:] if cold or times[0] < _ENOUGH_SECONDS else times
    return min(counted)


def _interpolated(costs: Sequence[float], tokens: int) -> float:
    """Linear between the timed widths and beyond the last."""
    upper = next((i for i, width in enumerate(WIDTHS) if width >= tokens), len(WIDTHS) - 1)
    lower = max(upper - 1, 0)
    if upper == lower:
        return costs[upper]
    share = (tokens - WIDTHS[lower]) / (WIDTHS[upper] - WIDTHS[lower])
    return costs[lower] + share * (costs[upper] - costs[lower])

"""Single passes as they run inside a captured round, on their own: what they cost without the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from gpu_timing import time_graph

from selfspec.cache import KVCache

_WORK = 10e-3
"""Seconds that a timed graph should take."""


def captured_pass_seconds(
    decoder: Any, layers: int, width: int, rows: int = 1, context: int = 256, floor: float = 1e-3
) -> float:
    """Seconds of a greedy pass of `layers` layers and the head over `width` tokens a row, as a graph.

    One token a row is a draft or plain step, which chooses; more are a verification, which accepts.

    Args:
        decoder: a LayeredDecoder, of the model or of a view.
        context: tokens in the cache before the pass.
        floor: seconds that it takes at least: how often a graph repeats it.
    """
    work = captured_pass(decoder, layers, width, rows, context)
    count = max(1, min(20, math.ceil(_WORK / floor))) if decoder.device.type == "cuda" else 1
    return time_graph([work] * count, decoder.device, repeats=8)


def captured_pass(decoder: Any, layers: int, width: int, rows: int, context: int) -> Callable[[], object]:
    """The pass on static tensors, with lean layers where the model allows them."""
    from layer_skip.lean import lean
    from selfspec.device.buffers import Buffers, Signature
    from selfspec.device.static_round import Exit
    from selfspec.device.window import DeviceWindow

    run, _ = lean(decoder)
    slots = 512 * math.ceil((context + width) / 512)
    cache, buffers = KVCache(rows, decoder.n_layers, slots), Buffers(rows, slots, decoder.device)
    end, greedy = Exit(run, rows <= 4), Signature()
    first = torch.full((rows,), context, dtype=torch.int64, device=decoder.device)
    tokens = torch.randint(0, decoder.vocab_size, (rows, width), device=decoder.device)

    @torch.inference_mode()
    def work() -> object:
        span = run.span_on_device(first, width)
        hidden = run.embed(tokens, span)
        hidden = run.run(hidden, 0, layers, span, DeviceWindow(cache, span))
        if width == 1:
            return end.choose(hidden, span, buffers, greedy)
        return end.accept(hidden, span, tokens[:, 1:], buffers, greedy)

    return work

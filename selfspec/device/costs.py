"""What passes cost as they run on the device alone: a few layers and the head, captured and timed once."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.lean import lean
from selfspec.cache import KVCache
from selfspec.device.buffers import Buffers, Signature
from selfspec.device.static_round import Exit
from selfspec.device.window import DeviceWindow
from selfspec.tuning.costs import WIDTHS, PassCosts

_SLOTS = 512
_TIMED_LAYERS = 2
_TOGETHER = 4
"""Passes of one graph: what launching it costs is not the pass's."""
_REPEATS = 5


@torch.inference_mode()
def time_captured(decoder: LayeredDecoder, widths: Sequence[int] = WIDTHS) -> PassCosts:
    """Time layers and head of `decoder` (the model, or a view of it) as graphs, at growing widths or some.

    Raises:
        RuntimeError: the device cannot capture them.
    """
    run, layers, heads = lean(decoder)[0], [], []
    n_layers = min(_TIMED_LAYERS, decoder.n_layers)
    buffers, end = Buffers(1, _SLOTS, decoder.device), Exit(run, fused=True)
    for width in widths:
        cache = KVCache(1, decoder.n_layers, _SLOTS)
        first = torch.full((1,), _SLOTS // 2 - width, dtype=torch.int64, device=decoder.device)
        span = run.span_on_device(first, width)
        tokens = torch.zeros(1, width, dtype=torch.int64, device=decoder.device)
        hidden = run.embed(tokens, span)

        window, greedy = DeviceWindow(cache, span), Signature()
        some_layers = partial(run.run, hidden, 0, n_layers, span, window)
        layers.append(captured_seconds(some_layers) / n_layers)
        heads.append(captured_seconds(partial(end.accept, hidden, span, tokens[:, 1:], buffers, greedy)))
    return PassCosts(tuple(layers), tuple(heads))


def captured_seconds(work: Callable[[], object]) -> float:
    """The least seconds of `work` in a replayed graph, after a first run as it is."""
    work()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(_TOGETHER):
            work()
    times = []
    for _ in range(_REPEATS + 1):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1e3 / _TOGETHER)
    return min(times[1:])

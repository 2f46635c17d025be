"""What passes cost as they run on the device alone: a few layers and the head, captured and timed once."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.lean import lean
from selfspec.cache import KVCache
from selfspec.device.buffers import Buffers, Signature
from selfspec.device.graphs import captured
from selfspec.device.static_round import Exit
from selfspec.device.window import DeviceWindow
from selfspec.tuning.costs import WIDTHS, PassCosts

_SLOTS = 512
_TIMED_LAYERS = 2
_TOGETHER = 4
"""Passes of one graph, of other layers each: what launching it costs is not the pass's, and layers that had
just been read would still be in the L2 cache."""
_REPEATS = 5


@torch.inference_mode()
def time_captured(decoder: LayeredDecoder, widths: Sequence[int] = WIDTHS) -> PassCosts:
    """Time layers and head of `decoder` (the model, or a view of it) as graphs, at growing widths or some.

    Raises:
        RuntimeError: the device cannot capture them, or has no memory for it.
    """
    run, layers, heads = lean(decoder)[0], [], []
    count = min(_TIMED_LAYERS, decoder.n_layers)
    firsts = [place * count % (decoder.n_layers - count + 1) for place in range(_TOGETHER)]
    buffers, end = Buffers(1, _SLOTS, decoder.device), Exit(run, fused=True)
    for width in widths:
        cache = KVCache(1, decoder.n_layers, _SLOTS)
        first = torch.full((1,), _SLOTS // 2 - width, dtype=torch.int64, device=decoder.device)
        span = run.span_on_device(first, width)
        tokens = torch.zeros(1, width, dtype=torch.int64, device=decoder.device)
        hidden = run.embed(tokens, span)

        window, greedy = DeviceWindow(cache, span), Signature()
        some_layers = [partial(run.run, hidden, i, i + count, span, window) for i in firsts]
        head = partial(end.accept, hidden, span, tokens[:, 1:], buffers, greedy)
        layers.append(captured_seconds(some_layers, decoder.device) / count)
        heads.append(captured_seconds([head] * _TOGETHER, decoder.device))
    return PassCosts(tuple(layers), tuple(heads))


def captured_seconds(works: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Seconds of one of `works`: the least of a few replays of a graph of all, after they ran as they are."""
    for work in works:
        work()
    with torch.cuda.device(device):  # which need not be the current one
        graph = captured(works, device, torch.cuda.graph_pool_handle())
        times = []
        for _ in range(_REPEATS + 1):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended) / 1e3 / len(works))
    return min(times[1:])

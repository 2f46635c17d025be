"""Seconds of device work: CUDA graphs timed with events; the speeds of a copy, a reduction and a launch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

REPLAYS = 20


def graph_of(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """All calls, one after the other, as a CUDA graph; the first is run before, which compiles it.

    Not `torch.cuda.graph`: that collects garbage and empties the allocator's cache for every capture.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
        torch.cuda.synchronize()
        graph.capture_begin()
        try:
            for call in calls:
                call()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


def event_seconds(run: Callable[[], object], repeats: int = REPLAYS, warm_up: int = 3) -> list[float]:
    """Seconds of each run on the GPU, queued without waiting in between."""
    events = []
    for _ in range(warm_up + repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        run()
        ended.record()
        events.append((began, ended))
    torch.cuda.synchronize()
    return [began.elapsed_time(ended) * 1e-3 for began, ended in events[warm_up:]]


def clock_seconds(run: Callable[[], object], repeats: int = 2, warm_up: int = 1) -> list[float]:
    """Seconds of each run on the host, which waits for what it does."""
    seconds = []
    for _ in range(warm_up + repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds[warm_up:]


def time_graph(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int = REPLAYS) -> float:
    """Seconds of one call: the median over replays of a graph of them all; on a CPU, run as they are."""
    if device.type == "cuda":
        return statistics.median(event_seconds(graph_of(calls), repeats)) / len(calls)
    return statistics.median(clock_seconds(lambda: [call() for call in calls])) / len(calls)


def copy_speed(device: torch.device, quick: bool = False) -> float:
    """Bytes per second, read and written, of a copy of 2 GiB."""
    source = random_bytes(1 << (20 if quick else 31), device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_graph([lambda: target.copy_(source)], device)


def read_speed(device: torch.device, quick: bool = False) -> float:
    """Bytes per second of a reduction over 2 GiB, which writes next to nothing."""
    numbers = random_bytes(1 << (20 if quick else 31), device).view(torch.int32)
    return numbers.nbytes / time_graph([lambda: numbers.max()], device)


def launch_seconds(device: torch.device, quick: bool = False) -> float:
    """Seconds of one of 100 tiny kernels in a graph, each waiting for the one before."""
    number = torch.ones(1, device=device)
    return time_graph([lambda: number.mul_(1.0001)] * (5 if quick else 100), device)


def random_bytes(count: int, device: torch.device) -> torch.Tensor:
    """uint8 [count] that are not all alike."""
    return torch.randint(0, 1 << 30, (count // 4,), dtype=torch.int32, device=device).view(torch.uint8)

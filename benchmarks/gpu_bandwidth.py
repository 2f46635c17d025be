"""What the card can do: copies, reads, matrix products, launches, and one wait of the host."""

from __future__ import annotations

import statistics
import time
from functools import partial

import torch
from gpu_bench import Bench, Row
from gpu_timing import clock_seconds, graph_of, time_graph


def run(bench: Bench) -> None:
    """Measure the ceilings that everything else is held against."""
    for table, name, work in (
        ("memory", "copy, read and written", copying),
        ("memory", "sum, read only", reading),
        ("matrix product", "bf16", multiplying),
        ("latency", "a tiny kernel in a graph of 100 dependent ones", in_a_graph),
        ("latency", "a tiny kernel launched from Python", from_python),
        ("latency", "a graph of one kernel, replayed and waited for", waited_for),
    ):
        bench.measure(table, name, partial(work, bench))


def copying(bench: Bench) -> Row:
    """Device to device."""
    return {"TB/s": bench.copy_speed / 1e12, "GB": 2 * bench.pick(1 << 31, 1 << 20) / 1e9}


def reading(bench: Bench) -> Row:
    """A reduction that writes next to nothing."""
    return {"TB/s": bench.read_speed / 1e12, "GB": bench.pick(1 << 31, 1 << 20) / 1e9}


def multiplying(bench: Bench) -> Row:
    """A large square product of random matrices."""
    size = bench.pick(8192, 128)
    left, right = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = time_graph([lambda: left @ right] * 3, bench.device)
    return {"TFLOP/s": 2 * size**3 / seconds / 1e12, "size": size}


def in_a_graph(bench: Bench) -> Row:
    """What every launch adds that has nothing else to do."""
    return {"µs": 1e6 * bench.launch_seconds}


def from_python(bench: Bench) -> Row:
    """Host seconds of a launch through PyTorch, the device keeping up."""
    number = torch.ones(1, device=bench.device)
    count = bench.pick(2000, 20)

    def launches() -> None:
        for _ in range(count):
            number.mul_(1.0001)
        _wait(bench)

    return {"µs": 1e6 * statistics.median(clock_seconds(launches, 5)) / count}


def waited_for(bench: Bench) -> Row:
    """One replay, a copy of the result to the host, and the host's wait for it: the least of a round."""
    number = torch.ones(1, device=bench.device)
    landing = torch.empty(1, pin_memory=bench.on_gpu)

    def step() -> None:
        number.mul_(1.0001)
        landing.copy_(number, non_blocking=True)

    replay = graph_of([step]) if bench.on_gpu else step
    seconds = []
    for _ in range(bench.pick(200, 5)):
        began = time.perf_counter()
        replay()
        _wait(bench)
        seconds.append(time.perf_counter() - began)
    return {"µs": 1e6 * statistics.median(seconds)}


def _wait(bench: Bench) -> None:
    if bench.on_gpu:
        torch.cuda.synchronize(bench.device)

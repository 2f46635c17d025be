"""What a profiler's trace says of rounds: how busy the GPU was, and how often the host waited."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Event = Mapping[str, Any]
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
ON_HOST = ("cuda_runtime", "cuda_driver")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cuStreamSynchronize")
_TO_HOST = "DtoH"
_GRAPH = "GraphLaunch"
_CAPTURE = "GraphInstantiate"


def traced(work: Callable[[], object]) -> list[Event]:
    """The events of a Chrome trace of `work`; times in microseconds."""
    kinds = torch.profiler.ProfilerActivity
    # The CPU's own operations are left out: noting them would slow the host down.
    kind = kinds.CUDA if torch.cuda.is_available() else kinds.CPU
    with torch.profiler.profile(activities=[kind]) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        found: list[Event] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return [event for event in found if event.get("ph") == "X"]


@dataclass(frozen=True)
class Decoding:
    """The stretch from the first round's report to the host to the last one's; times in microseconds."""

    rounds: int
    """Graphs that were launched, the first one's not counted: the stretch begins when it is done."""
    captures: int
    """Graphs that were made: a stretch with one tells nothing of others."""
    total: float
    busy: float
    """Time in which the GPU ran something."""
    waiting: float
    """Of its idle time, that between a report to the host and what the host launched next."""
    copies: int
    """To the host; the last one's round is the last."""
    waits: int
    """Calls in which the host waited for the device."""
    launches: int
    """Graphs and single kernels that the host launched."""


def decoding(events: Sequence[Event]) -> Decoding | None:
    """What the trace says of rounds, each a graph that ends with a copy to the host; None without two.

    A call also copies to the host before its first round, and may afterwards.
    """
    graphs = sorted(e["ts"] for e in events if e.get("cat") in ON_HOST and _GRAPH in e["name"])
    device = sorted((e for e in events if e.get("cat") in ON_DEVICE), key=lambda e: e["ts"])
    ends = [e["ts"] + e["dur"] for e in device if _TO_HOST in e["name"]]
    if len(graphs) < 2 or not ends or ends[-1] < graphs[-1]:
        return None
    begin, end = (next(e for e in ends if e > started) for started in (graphs[0], graphs[-1]))
    inside = [e for e in device if begin <= e["ts"] < end]
    host = [e for e in events if e.get("cat") in ON_HOST and begin <= e["ts"] < end]
    return Decoding(
        rounds=len(graphs) - 1,
        captures=sum(_CAPTURE in e["name"] for e in host),
        total=end - begin,
        busy=_covered(inside),
        waiting=sum(gap for after, gap in _gaps(inside, begin) if after in ends),
        copies=sum(_TO_HOST in e["name"] for e in inside),
        waits=sum(e["name"] in WAITS for e in host),
        launches=sum("Launch" in e["name"] for e in host),
    )


def _covered(events: Sequence[Event]) -> float:
    """Length of the union of the events, which are in order."""
    total, reached = 0.0, float("-inf")
    for event in events:
        end = event["ts"] + event["dur"]
        total += max(0.0, end - max(reached, event["ts"]))
        reached = max(reached, end)
    return total


def _gaps(events: Sequence[Event], begin: float) -> list[tuple[float, float]]:
    """Where the device was idle: the time since when, and how long."""
    gaps, reached = [], begin
    for event in events:
        if event["ts"] > reached:
            gaps.append((reached, event["ts"] - reached))
        reached = max(reached, event["ts"] + event["dur"])
    return gaps

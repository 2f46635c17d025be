"""A timing's row: microseconds, through inputs too many for the cache, beside a floor and a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from gpu_bench import Bench, Row
from gpu_timing import time_graph
from targets import met

Inputs = TypeVar("Inputs")
_WORK = 1e-3
"""Seconds that a graph should take: launching one costs about 10 microseconds."""
_MOST_CALLS = 200
_MOST_SETS = 150


def timed_row(
    bench: Bench, run: Callable[[Inputs], object], sets: Sequence[Inputs], nbytes: int, launches: int = 0
) -> Row:
    """Microseconds of `run`, going through the sets, beside what its bytes take at the speed of a copy.

    Args:
        sets: inputs; together they should be larger than the cache, see `n_sets`.
        nbytes: what must be read and written at least, once each.
        launches: kernels that the call launches, for a second floor with the time of as many empty ones.
    """
    if bench.compiling:
        run(sets[0])
        return dict.fromkeys(("over floor", "µs", "over floor and launches"), 1.0)
    floor = nbytes / bench.speed
    count = max(len(sets), min(_MOST_CALLS, math.ceil(_WORK / max(floor, 2e-6))))
    count = bench.pick(count, len(sets))
    seconds = time_graph([partial(run, sets[i % len(sets)]) for i in range(count)], bench.device)
    row = {"MB": nbytes / 1e6, "floor, µs": 1e6 * floor, "µs": 1e6 * seconds, "over floor": seconds / floor}
    if launches:
        row["over floor and launches"] = seconds / (floor + launches * bench.launch_seconds)
    return row


def n_sets(bench: Bench, nbytes: int) -> int:
    """How many inputs of this size leave none of them in the cache."""
    if not bench.on_gpu or bench.quick or bench.compiling:
        return 1
    cache = torch.cuda.get_device_properties(bench.device).L2_cache_size
    return max(1, min(_MOST_SETS, math.ceil(3 * cache / nbytes)))


def reached(row: Row, column: str, target: float, most: bool = True) -> Row:
    """The row with a target for one of its columns: the `most` or least that it may be."""
    return all_reached(row, {column: target}, most)


def all_reached(row: Row, targets: Mapping[str, float], most: bool = True) -> Row:
    """The row with targets for some of its columns, all of which it must keep."""
    said = ", ".join(f"{column} {'≤' if most else '≥'} {target:g}" for column, target in targets.items())
    kept = all(met(target, row[column], most=most) for column, target in targets.items())
    return {**row, "target": said, "verdict": "reached" if kept else "MISSED"}

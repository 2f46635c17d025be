"""Which plan is fastest: every way of cutting a kernel that is worth trying, at the shapes of 8B and 1B.

Plans are compiled in threads, all of a shape at once; one that does not compile or fit is noted and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from gpu_bench import Bench, NotHereError, Row
from gpu_checks import LIMIT, worst
from gpu_rows import n_sets
from gpu_sweep_plans import Candidates
from gpu_timing import time_graph
from torch import Tensor

THREADS = 14
REPLAYS = 8
_WORK = 4e-4
"""Seconds that a timed graph takes at least, as far as its bytes say."""


def run(bench: Bench) -> None:
    """All shapes, the most important ones first."""
    try:
        from gpu_sweep_shapes import shapes
    except ImportError as missing:  # no triton
        bench.measure("sweep", "all", partial(_not_here, str(missing)))
        return
    for kernel, name, candidates in shapes(bench):
        bench.measure(kernel, name, partial(best_plan, bench, f"{kernel}: {name}", candidates))


def best_plan(bench: Bench, label: str, make: Callable[[], Candidates]) -> Row:
    """The default's time and the best one's, over the floor; every plan's goes into the JSON."""
    torch.manual_seed(0)
    try:
        tried = make()
    except ImportError as missing:
        raise NotHereError(f"there is no such kernel ({missing})") from missing
    if not bench.on_gpu:
        raise NotHereError("plans are Triton's")
    sets = [tried.inputs() for _ in range(n_sets(bench, tried.nbytes))]
    broken = compiled(tried, sets[0], bench.device)
    floor = tried.nbytes / bench.speed
    count = max(len(sets), min(50, int(_WORK / floor)))
    seconds: dict[Any, float] = {}
    for plan in tried.plans:
        if plan not in broken:
            calls = [partial(tried.run, plan, sets[i % len(sets)]) for i in range(count)]
            seconds[plan] = time_graph(calls, bench.device, REPLAYS)
    best = min(seconds, key=lambda plan: seconds[plan])
    same = agree(tried.run(best, sets[0]), tried.run(tried.plans[0], sets[0]))
    every = {str(plan): 1e6 * spent for plan, spent in seconds.items()}
    bench.note(label, every | {str(plan): why for plan, why in broken.items()})
    counts = {"plans": len(seconds), "left out": len(broken)}
    return {**summary(tried.plans[0], best, seconds, floor), **counts, "agrees with the default": same}


def agree(found: object, expected: object) -> str | None:
    """Whether two plans' results are the same up to rounding; None where they are no matrices."""
    if not (isinstance(found, Tensor) and isinstance(expected, Tensor)):
        return None
    return "yes" if worst(found, expected) <= LIMIT[found.dtype] else "NO"


def summary(default: Any, best: Any, seconds: dict[Any, float], floor: float) -> Row:
    """The default beside the best plan."""
    usual = seconds.get(default)
    return {
        "default, µs": None if usual is None else 1e6 * usual,
        "over floor": None if usual is None else usual / floor,
        "best, µs": 1e6 * seconds[best],
        "best over floor": seconds[best] / floor,
        "best plan": "the default" if best == default else str(best),
    }


def compiled(tried: Candidates, inputs: Any, device: torch.device) -> dict[Any, str]:
    """Run every plan once, in threads; plan -> what is wrong with it."""

    def once(plan: Any) -> str | None:
        torch.cuda.set_device(device)
        torch.empty(1, device=device).zero_()  # a thread has no context before it has done something
        try:
            tried.run(plan, inputs)
            torch.cuda.synchronize(device)
        except Exception as error:  # a plan may ask for anything that a GPU lacks
            return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        return None

    first, *others = tried.plans
    outcome = {first: once(first)}  # alone: what all plans share is set up once
    with ThreadPoolExecutor(THREADS) as pool:
        outcome |= dict(zip(others, pool.map(once, others), strict=True))
    torch.cuda.synchronize(device)
    return {plan: why for plan, why in outcome.items() if why is not None}


def _not_here(reason: str) -> Row:
    raise NotHereError(reason)

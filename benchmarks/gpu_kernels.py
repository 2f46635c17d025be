"""Every kernel: right first, then how far above its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module

import torch
from gpu_bench import Bench, NotHereError, Row, free
from gpu_checks import Check

CHECKED = (
    "gpu_check_products",
    "gpu_check_low_bit",
    "gpu_check_heads",
    "gpu_check_attention",
    "gpu_check_rounds",
)
TIMED = ("gpu_time_rounds", "gpu_time_layers", "gpu_time_low_bit")
THREADS = 12


def run(bench: Bench) -> None:
    """All checks, then all timings."""
    rows = [row for row in every_row(bench) if bench.wants(*row[:2])]
    if rows and bench.on_gpu and not bench.resumed:
        compile_all(bench, [work for *_, work in rows])
        bench.start_clock()
    for table, name, work in rows:
        bench.measure(table, name, partial(seeded, work))


def every_row(bench: Bench) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Table, name and work."""
    for module in CHECKED:
        for check in import_module(module).checks():
            yield "against the reference", f"{check.kernel}: {check.name}", partial(held, bench, check)
    for module in TIMED:
        yield from import_module(module).timings(bench)


def compile_all(bench: Bench, works: Sequence[Callable[[], Row]]) -> None:
    """Run everything once in threads: compiling one kernel after the other takes a minute or two."""

    def once(work: Callable[[], Row]) -> None:
        torch.cuda.set_device(bench.device)
        torch.empty(1, device=bench.device).zero_()  # a thread has no context before it has done something
        with suppress(Exception):  # what is wrong is told when its row is measured
            work()

    torch.cuda.set_device(bench.device)
    bench.measure_speeds()
    bench.compiling = True
    once(works[0])  # alone: what all kernels share is set up once
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(once, works[1:]))
    bench.compiling = False
    torch.use_deterministic_algorithms(False)  # threads that poisoned memory at once left it as it was
    free(bench.device)


def held(bench: Bench, check: Check) -> Row:
    """A check's error beside the most that it may be; NaN never passes."""
    error = check.error(bench)
    row: Row = {"error": error, "target": f"≤ {check.limit:.2g}"}
    return {**row, "verdict": "reached" if error <= check.limit else "MISSED"}


def seeded(work: Callable[[], Row]) -> Row:
    """A row on random numbers of its own."""
    torch.manual_seed(0)
    try:
        return work()
    except ImportError as missing:
        raise NotHereError(f"there is no such kernel ({missing})") from missing

"""The low-bit product on a GPU beside the product with the bf16 weights.

    python benchmarks/low_bit_product.py

Shapes are those of Llama models with 1B and 8B parameters, rows 1 to 16. Every contender runs from a CUDA
graph that goes through enough copies of its weights that none is still in the L2 cache, as in a forward
pass; contenders take turns. The floor is what must be read at the speed at which this GPU copies, measured
in the same run. A speed is printed only where the result agrees with the reference. Writes
low_bit_product.json and low_bit_product.md beside the other results. Needs a CUDA device that does nothing
else.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec.benchmarking.environment import hardware, versions
from selfspec.files import write_whole
from selfspec_kernels.low_bit_product import low_bit_product
from selfspec_kernels.low_bit_product_reference import pack_levels, pack_scales, reference_product

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "1B attention": (2048, 2048),
    "1B keys": (512, 2048),
    "1B gate": (8192, 2048),
    "1B down": (2048, 8192),
    "1B head": (128_256, 2048),
    "8B attention": (4096, 4096),
    "8B keys": (1024, 4096),
    "8B gate": (14_336, 4096),
    "8B down": (4096, 14_336),
    "8B head": (128_256, 4096),
}
ROWS = (1, 2, 4, 8, 16)
REPLAYS = 25
WORK = 300e-6
"""Seconds of weights that a graph reads at least: one launch of a graph takes about 10 us."""
AGREEMENT = 2**-7
"""Largest difference to the reference over the largest output: a last bit of bf16."""


def copy_speed() -> float:
    """Bytes per second, read and written, of a copy of 2 GB: the best of some."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds([lambda: target.copy_(source)])[0])


def seconds(calls: list[Callable[[], object]]) -> list[list[float]]:
    """Times of each call over the replays, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for replay in range(REPLAYS + 3):
        for call, spent in zip(calls, times, strict=True):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            call()
            ended.record()
            ended.synchronize()
            if replay >= 3:
                spent.append(began.elapsed_time(ended) * 1e-3)
    return times


def graph(step: Callable[[int], object], steps: int) -> Callable[[], object]:
    """A CUDA graph of step(0), step(1)…; warmed up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(0)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for number in range(steps):
            step(number)
    return captured.replay


def copies(nbytes: int, cache: int) -> int:
    """How many weights of this size leave none of them in the cache."""
    return max(2, math.ceil(3 * cache / nbytes))


class Weights:
    """One matrix in bf16 and in 4 bits, in as many copies as the cache asks for."""

    def __init__(self, n: int, k: int, group: int, cache: int) -> None:
        q = torch.randint(0, 16, (n, k), dtype=torch.uint8, device="cuda")
        scale = (torch.rand(n, k // group, device="cuda") * 0.01 + 0.001).bfloat16()
        offset = (torch.randn(n, k // group, device="cuda") * 0.01).bfloat16()
        packed, scales = pack_levels(q, group), pack_scales(scale, offset)
        self.bytes = packed.nbytes + scales.nbytes
        self.low = [(packed.clone(), scales.clone()) for _ in range(copies(self.bytes, cache))]
        dense = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
        self.dense = [dense.clone() for _ in range(copies(dense.nbytes, cache))]


def measure(weights: Weights, m: int, group: int, speed: float) -> dict[str, Any]:
    """Microseconds of each contender for m rows."""
    from selfspec_kernels import low_bit_launch

    n, k = weights.dense[0].shape
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    chosen = low_bit_launch.plan(m, n, k, group, x.dtype, processors)
    in_fp32 = low_bit_launch.plan(m, n, k, group, torch.float32, processors)

    def low(number: int) -> Tensor:
        return low_bit_product(x, *weights.low[number % len(weights.low)], backend="triton")

    def dense(number: int) -> Tensor:
        return F.linear(x, weights.dense[number % len(weights.dense)])

    def summed(number: int) -> Tensor:
        return low_bit_launch.product(x, *weights.low[number % len(weights.low)], None, in_fp32)

    def unsplit(number: int) -> Tensor:
        return low_bit_launch.product(
            x, *weights.low[number % len(weights.low)], None, replace(chosen, splits=1)
        )

    contenders: dict[str, Callable[[int], Tensor]] = {"low_bit": low, "bf16": dense}
    if m <= 2:
        contenders["sum_kernel"] = summed
    if chosen.splits > 1:
        contenders["unsplit"] = unsplit
    expected = reference_product(x, *weights.low[0]).float()
    for name, contender in contenders.items():
        difference = (contender(0).float() - expected).abs().max() / expected.abs().max()
        if name != "bf16" and not difference < AGREEMENT:
            raise SystemExit(f"{name} is wrong for {m} x {k} times {n}: {difference:.1e} from the reference")
    steps = max(len(weights.low), len(weights.dense), math.ceil(WORK * speed / weights.bytes))
    times = seconds([graph(contender, steps) for contender in contenders.values()])
    row: dict[str, Any] = {
        "rows": m,
        "outputs": n,
        "inputs": k,
        "group": group,
        "splits": chosen.splits,
        "bytes": weights.bytes + 2 * m * (n + k),
        "bf16_bytes": 2 * (n * k + m * (n + k)),
    }
    for name, spent in zip(contenders, times, strict=True):
        ordered = sorted(1e6 * t / steps for t in spent)
        row[f"{name}_microseconds"] = {
            p: ordered[len(ordered) * p // 100 if p != 50 else len(ordered) // 2] for p in (20, 50, 80)
        }
    row["floor_microseconds"] = 1e6 * row["bytes"] / speed
    return row


def table(results: dict[str, Any]) -> str:
    """The page of results."""
    lines = [
        "# The low-bit product beside the bf16 product",
        "",
        "Conditions: " + json.dumps(results["conditions"]),
        "",
        "Microseconds, median (p20-p80). Floor: bytes / measured copy speed.",
        "",
        "| matrix | rows | group | MB | floor | low-bit | over floor | bf16 | speedup | by sums | unsplit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def shown(row: dict[str, Any], name: str) -> str:
        found = row.get(f"{name}_microseconds")
        return f"{found[50]:.1f} ({found[20]:.1f}-{found[80]:.1f})" if found else ""

    for row in results["rows"]:
        low, dense = (row[f"{name}_microseconds"][50] for name in ("low_bit", "bf16"))
        lines.append(
            f"| {row['matrix']} {row['outputs']}x{row['inputs']} | {row['rows']} | {row['group']} "
            f"| {row['bytes'] / 1e6:.1f} | {row['floor_microseconds']:.1f} | {shown(row, 'low_bit')} "
            f"| {low / row['floor_microseconds']:.2f} | {shown(row, 'bf16')} | {dense / low:.2f} "
            f"| {shown(row, 'sum_kernel')} | {shown(row, 'unsplit')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, save, print; 1 where there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--matrices", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="NAME")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA device, and there is none", file=sys.stderr)
        return 1
    speed = copy_speed()
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    rows = []
    for name in options.matrices:
        for group in options.groups:
            weights = Weights(*SHAPES[name], group, cache)
            rows += [{"matrix": name, **measure(weights, m, group, speed)} for m in options.rows]
            del weights
    conditions = {
        "hardware": hardware(torch.device("cuda")),
        "versions": versions(),
        "dtype": "bfloat16",
        "copy_bytes_per_second": speed,
        "replays": REPLAYS,
    }
    results = {"conditions": conditions, "rows": rows}
    write_whole(RESULTS / "low_bit_product.json", json.dumps(results, indent=1) + "\n")
    write_whole(RESULTS / "low_bit_product.md", table(results))
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

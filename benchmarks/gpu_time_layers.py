"""The kernels of a decoder layer at the 8B shape, and at that of 1B: time over floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from gpu_bench import Bench, Row
from gpu_checks import BF16, normal
from gpu_rows import n_sets, reached, timed_row
from gpu_time_rounds import Timing
from torch import Tensor

from selfspec_kernels.verify_attention import verify_attention
from selfspec_kernels.verify_attention_reference import Attention

LEAST_SHARE = 0.8
HEADS, KV_HEADS, SIZE = 32, 8, 128
MATRICES = {
    # outputs, inputs, whether a residual is added to the product
    "8B q, k, v": ((4096, 1024, 1024), 4096, False),
    "8B o": ((4096,), 4096, True),
    "8B down": ((4096,), 14_336, True),
    "1B q, k, v": ((2048, 512, 512), 2048, False),
    "1B o": ((2048,), 2048, True),
    "1B down": ((2048,), 8192, True),
}
GATED = {"8B gate and up": (14_336, 4096), "1B gate and up": (8192, 2048)}


def timings(bench: Bench) -> Iterator[Timing]:
    """Kernel, name and work of every row."""
    for context in (16_384, 4096, 256):
        for rows in (1, 16):
            for width in (1, 8):
                name = f"{context} tokens, B = {rows}, m = {width}"
                yield "verify_attention", name, partial(attention_row, bench, context, rows, width)
    for rows in (1, 2, 4, 8, 16, 32):
        for name, (sizes, inputs, added) in MATRICES.items():
            work = partial(narrow_row, bench, sizes, inputs, rows, added)
            yield "narrow_product", f"{name} {sum(sizes)} x {inputs}, {rows} rows", work
        for name, (outputs, inputs) in GATED.items():
            work = partial(gated_row, bench, outputs, inputs, rows)
            yield "gated_product", f"{name} 2 x {outputs} x {inputs}, {rows} rows", work
    for rows, width in ((1, 1), (1, 8), (16, 8)):
        yield "row_norm", f"D = 4096, B = {rows}, m = {width}", partial(norm_row, bench, rows, width)
        yield "rope_store", f"B = {rows}, m = {width}", partial(rope_row, bench, rows, width)


def attention_row(bench: Bench, context: int, rows: int, width: int) -> Row:
    """Keys and values of all tokens, read once for all the query heads that share them."""
    context = bench.pick(context, 60)
    nbytes = 2 * 2 * rows * (KV_HEADS * SIZE * (context + width) + HEADS * SIZE * width)
    query = normal(bench, rows, width, HEADS, SIZE, dtype=BF16).transpose(1, 2)
    shape = (2, rows, KV_HEADS, context + width, SIZE)
    sets = [normal(bench, *shape, dtype=BF16) for _ in range(n_sets(bench, nbytes))]
    lengths = torch.full((rows,), context, device=bench.device)

    def run(cache: Tensor) -> object:
        return verify_attention(Attention(query, cache[0], cache[1], lengths), backend=bench.backend)

    row = timed_row(bench, run, sets, nbytes, launches=2)
    row = {**row, "of the copy's speed": nbytes / bench.copy_speed / (1e-6 * row["µs"])}
    return reached(row, "of the copy's speed", LEAST_SHARE, most=False) if context == 16_384 else row


def narrow_row(bench: Bench, sizes: tuple[int, ...], inputs: int, rows: int, added: bool) -> Row:
    """All matrices in one launch, beside cuBLAS with the matrices one below the other."""
    from selfspec_kernels.narrow_product import narrow_product

    inputs, outputs = bench.pick(inputs, 64), bench.sizes(sizes)
    x = normal(bench, rows, inputs, dtype=BF16)
    residual = normal(bench, rows, sum(outputs), dtype=BF16) if added else None
    nbytes = 2 * (sum(outputs) * (inputs + rows * (1 + added)) + rows * inputs)
    weights = [
        normal(bench, sum(outputs), inputs, dtype=BF16, scale=0.02) for _ in range(n_sets(bench, nbytes))
    ]

    def ours(weight: Tensor) -> object:
        return narrow_product(x, weight.split(outputs), residual=residual, backend=bench.backend)

    def theirs(weight: Tensor) -> object:
        out = F.linear(x, weight)
        return out if residual is None else residual + out

    return beside(bench, ours, theirs, weights, nbytes)


def gated_row(bench: Bench, outputs: int, inputs: int, rows: int) -> Row:
    """Both products and the activation in one launch, beside PyTorch's three."""
    from selfspec_kernels.narrow_product import gated_product

    inputs, outputs = bench.pick(inputs, 64), bench.pick(outputs, 40)
    x = normal(bench, rows, inputs, dtype=BF16)
    nbytes = 2 * (2 * outputs * inputs + rows * (inputs + outputs))
    sets = [normal(bench, 2, outputs, inputs, dtype=BF16, scale=0.02) for _ in range(n_sets(bench, nbytes))]

    def ours(pair: Tensor) -> object:
        return gated_product(x, pair[0], pair[1], backend=bench.backend)

    def theirs(pair: Tensor) -> object:
        return F.silu(F.linear(x, pair[0])) * F.linear(x, pair[1])

    return beside(bench, ours, theirs, sets, nbytes)


def beside(
    bench: Bench,
    ours: Callable[[Tensor], object],
    theirs: Callable[[Tensor], object],
    sets: list[Tensor],
    nbytes: int,
) -> Row:
    """A row for ours, with PyTorch's time over the same floor."""
    row = timed_row(bench, ours, sets, nbytes)
    other = timed_row(bench, theirs, sets, nbytes)
    return {**row, "PyTorch, µs": other["µs"], "PyTorch, over floor": other["over floor"]}


def rope_row(bench: Bench, rows: int, width: int) -> Row:
    """A launch and next to no bytes."""
    from selfspec_kernels.rope_store import rope_store
    from selfspec_kernels.rope_store_reference import Projections

    qkv = normal(bench, rows, width, (HEADS + 2 * KV_HEADS) * SIZE, dtype=BF16)
    angle = normal(bench, rows, width, SIZE, dtype=BF16)
    keys, values = normal(bench, 2, rows, KV_HEADS, 256, SIZE, dtype=BF16)
    slots = torch.arange(width, device=bench.device).repeat(rows, 1)

    def run(_: int) -> object:
        return rope_store(Projections(qkv, angle, angle, keys, values, slots, HEADS), backend=bench.backend)

    row = timed_row(bench, run, [0], 2 * qkv.nbytes, launches=1)
    return {"µs": row["µs"], "over an empty launch": row["over floor and launches"]}


def norm_row(bench: Bench, rows: int, width: int) -> Row:
    """A launch and next to no bytes."""
    from selfspec_kernels.row_norm import row_norm
    from selfspec_kernels.row_norm_reference import Norm

    inputs = bench.pick(4096, 64)
    hidden = normal(bench, rows, width, inputs, dtype=BF16)
    norm = Norm("rms", normal(bench, inputs, dtype=BF16))

    def run(_: int) -> object:
        return row_norm(hidden, norm, backend=bench.backend)

    row = timed_row(bench, run, [0], 2 * hidden.nbytes, launches=1)
    return {"µs": row["µs"], "over an empty launch": row["over floor and launches"]}

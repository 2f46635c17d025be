"""The kernels and shapes of the sweep, with the plans of each: needs triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from gpu_bench import Bench
from gpu_check_low_bit import packed_of
from gpu_checks import BF16, normal
from gpu_sweep_plans import Candidates, first_plans
from gpu_time_layers import GATED, HEADS, KV_HEADS, MATRICES, SIZE
from gpu_time_low_bit import GATED as GATED_PACKED
from gpu_time_low_bit import PACKED, SEVERAL
from torch import Tensor

from selfspec_kernels import exit_head_launch, low_bit_launch, verify_attention_launch
from selfspec_kernels.exit_head_reference import Head
from selfspec_kernels.launching import processors
from selfspec_kernels.overlap import with_overlap
from selfspec_kernels.row_norm_reference import Norm
from selfspec_kernels.verify_attention_reference import Attention

Shape = tuple[str, str, Callable[[], Candidates]]


def shapes(bench: Bench) -> Iterator[Shape]:
    """Kernel, name and candidates: one row first, as its plans hold for all that fit the same tile."""
    for size in ("8B", "1B"):
        for rows in (1, 8) if size == "8B" else (1,):
            for name, (outputs, inputs, _) in MATRICES.items():
                if name.startswith(size):
                    work = partial(narrow, bench, outputs, inputs, rows)
                    yield "narrow_product", f"{name} {sum(outputs)} x {inputs}, {rows} rows", work
            for name, (wide, inputs) in GATED.items():
                if name.startswith(size):
                    yield "gated_product", f"{name}, {rows} rows", partial(gated, bench, wide, inputs, rows)
            for name, (outputs, inputs, group, _) in SEVERAL.items():
                if name.startswith(size):
                    work = partial(several_packed, bench, outputs, inputs, group, rows)
                    yield "low_bit_products", f"{name} {sum(outputs)} x {inputs}, {rows} rows", work
            for name, (wide, inputs, group) in GATED_PACKED.items():
                if name.startswith(size):
                    work = partial(gated_packed, bench, wide, inputs, group, rows)
                    yield "low_bit_gated", f"{name}, {rows} rows", work
            for name, (wide, inputs, group) in PACKED.items():
                if name in ("8B head", "1B head"):
                    work = partial(packed, bench, wide, inputs, group, rows)
                    yield "low_bit_product", f"{name} {wide} x {inputs}, {rows} rows", work
        if size == "8B":
            for context, rows, width in ((16_384, 1, 8), (16_384, 16, 8), (4096, 1, 1), (256, 1, 8)):
                work = partial(attention, bench, context, rows, width)
                yield "verify_attention", f"{context} tokens, B = {rows}, m = {width}", work
            for rows in (1, 8):
                yield "exit_head", f"D = 4096, {rows} rows", partial(exit_head, bench, rows)


def narrow(bench: Bench, outputs: tuple[int, ...], inputs: int, rows: int) -> Candidates:
    """Plans of `narrow_product`."""
    from selfspec_kernels import narrow_product_launch as launch

    x = normal(bench, rows, inputs, dtype=BF16)
    none = [None] * len(outputs)
    return Candidates(
        lambda plan, weight: launch.product(x, weight.split(outputs), none, chosen=plan),
        launch.candidates(sum(outputs), inputs, BF16, processors(bench.device)),
        lambda: normal(bench, sum(outputs), inputs, dtype=BF16, scale=0.02),
        2 * (sum(outputs) * (inputs + rows) + rows * inputs),
    )


def gated(bench: Bench, outputs: int, inputs: int, rows: int) -> Candidates:
    """Plans of `gated_product`."""
    from selfspec_kernels import narrow_product_launch as launch

    x = normal(bench, rows, inputs, dtype=BF16)
    return Candidates(
        lambda plan, pair: launch.gated(x, pair[0], pair[1], "silu", chosen=plan),
        launch.candidates(outputs, inputs, BF16, processors(bench.device), streams=2),
        lambda: normal(bench, 2, outputs, inputs, dtype=BF16, scale=0.02),
        2 * (2 * outputs * inputs + rows * (inputs + outputs)),
    )


def packed(bench: Bench, outputs: int, inputs: int, group: int, rows: int) -> Candidates:
    """Plans of `low_bit_product`."""
    x = normal(bench, rows, inputs, dtype=BF16)
    there = processors(bench.device)
    default = low_bit_launch.plan(rows, outputs, inputs, group, BF16, there)
    known = getattr(low_bit_launch, "candidates", None)
    made = packed_of(bench, bench.pick(outputs, 40), inputs, group)
    return Candidates(
        lambda plan, weights: low_bit_launch.product(x, weights[0], weights[1], None, plan),
        known(rows, outputs, inputs, group, BF16, there) if known else packed_plans(default),
        lambda: tuple(part.clone() for part in made),
        sum(part.nbytes for part in made) + 2 * rows * (inputs + outputs),
    )


def several_packed(bench: Bench, outputs: tuple[int, ...], inputs: int, group: int, rows: int) -> Candidates:
    """Plans of `low_bit_products`."""
    from selfspec_kernels import low_bit_products_launch as launch

    x = normal(bench, rows, inputs, dtype=BF16)
    made = [packed_of(bench, size, inputs, group) for size in bench.sizes(outputs)]
    default = launch.plan(rows, sum(outputs), inputs, group, processors(bench.device))
    return Candidates(
        with_overlap()(lambda plan, matrices: launch.products(x, matrices, None, 1.0, plan)),
        first_plans(default, launch.candidates(rows, inputs, group)),
        lambda: [launch.PackedMatrix(*(part.clone() for part in pair)) for pair in made],
        sum(part.nbytes for pair in made for part in pair) + 2 * rows * (inputs + sum(outputs)),
    )


def gated_packed(bench: Bench, outputs: int, inputs: int, group: int, rows: int) -> Candidates:
    """Plans of `low_bit_gated`."""
    from selfspec_kernels import low_bit_products_launch as launch

    x = normal(bench, rows, inputs, dtype=BF16)
    made = packed_of(bench, bench.pick(outputs, 40), inputs, group)
    default = launch.plan(rows, 2 * outputs, inputs, group, processors(bench.device))
    return Candidates(
        with_overlap()(lambda plan, pair: launch.gated(x, pair[0], pair[1], "silu", plan)),
        first_plans(default, launch.candidates(rows, inputs, group)),
        lambda: [launch.PackedMatrix(*(part.clone() for part in made)) for _ in range(2)],
        2 * sum(part.nbytes for part in made) + 2 * rows * (inputs + outputs),
    )


def packed_plans(default: Any) -> list[Any]:
    """The default, and one or two of its numbers changed."""
    changed = (
        replace(default, block_n=n, slices=slices, warps=warps, stages=stages, splits=splits)
        for splits in dict.fromkeys((default.splits, 1))
        for stages in (default.stages, 2, 5)
        for n, slices, warps in ((32, 8, 8), (16, 8, 4), (16, 16, 8), (32, 4, 4), (64, 4, 8), (64, 8, 8))
    )
    return first_plans(default, changed)


def attention(bench: Bench, context: int, rows: int, width: int) -> Candidates:
    """Plans of `verify_attention`."""
    slots = context + width
    query = normal(bench, rows, width, HEADS, SIZE, dtype=BF16).transpose(1, 2)
    lengths = torch.full((rows,), context, device=bench.device)

    def run(plan: Any, cache: Tensor) -> object:
        return verify_attention_launch.attend(Attention(query, cache[0], cache[1], lengths), plan)

    default = verify_attention_launch.plan(SIZE, BF16)
    numbers = product((512, 256, 1024), (32, 64, 128), (4, 8), (3, 2, 4))
    others = (
        replace(default, span=span, block_n=n, warps=warps, stages=stages)
        for span, n, warps, stages in numbers
        if n * stages <= 256  # more would not fit the shared memory
    )
    return Candidates(
        run,
        first_plans(default, others),
        lambda: normal(bench, 2, rows, KV_HEADS, slots, SIZE, dtype=BF16),
        2 * 2 * rows * (KV_HEADS * SIZE * slots + HEADS * SIZE * width),
    )


def exit_head(bench: Bench, rows: int) -> Candidates:
    """Plans of `exit_head`."""
    vocabulary, inputs = 128_256, 4096
    hidden = normal(bench, 1, rows, inputs, dtype=BF16)
    norm = Norm("rms", normal(bench, inputs, dtype=BF16))
    default = exit_head_launch.plan(BF16, BF16)
    tiles = ((64, 128, 4), (64, 256, 4), (32, 256, 4), (128, 128, 8), (128, 64, 4), (128, 64, 8), (64, 64, 4))
    others = (
        replace(default, block_n=n, block_d=d, warps=warps, stages=stages)
        for (n, d, warps), stages in product(tiles, (3, 4, 5))
    )
    return Candidates(
        lambda plan, head: exit_head_launch.choose(hidden, head, 1, None, None, plan),
        first_plans(default, others),
        lambda: Head(normal(bench, vocabulary, inputs, dtype=BF16, scale=0.02), norm=norm),
        2 * inputs * (vocabulary + rows),
    )

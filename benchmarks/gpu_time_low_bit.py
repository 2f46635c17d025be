"""Products with weights in 4 bits at the shapes of a draft step: time over floor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from gpu_bench import Bench, Row
from gpu_check_low_bit import packed_of
from gpu_checks import BF16, normal
from gpu_rows import n_sets, timed_row
from gpu_time_rounds import Timing
from torch import Tensor

from selfspec_kernels.low_bit_product import low_bit_product
from selfspec_kernels.overlap import with_overlap

PACKED = {
    # outputs, inputs, inputs that share a scale
    "8B q": (4096, 4096, 64),
    "8B k": (1024, 4096, 64),
    "8B gate": (14_336, 4096, 64),
    "8B down": (4096, 14_336, 64),
    "8B head": (128_256, 4096, 32),
    "1B gate": (8192, 2048, 64),
    "1B down": (2048, 8192, 64),
}
SEVERAL = {
    # outputs of each matrix, inputs, inputs that share a scale, whether a residual is added
    "8B q, k, v": ((4096, 1024, 1024), 4096, 64, False),
    "8B o": ((4096,), 4096, 64, True),
    "8B down": ((4096,), 14_336, 64, True),
    "1B q, k, v": ((2048, 512, 512), 2048, 64, False),
    "1B down": ((2048,), 8192, 64, True),
}
GATED = {"8B gate and up": (14_336, 4096, 64), "1B gate and up": (8192, 2048, 64)}


def timings(bench: Bench) -> Iterator[Timing]:
    """Kernel, name and work of every row."""
    for rows in (1, 8, 2, 4, 16):
        for name, (sizes, inputs, group, added) in SEVERAL.items():
            work = partial(several_row, bench, sizes, inputs, group, rows, added)
            yield "low_bit_products", f"{name} {sum(sizes)} x {inputs}, {rows} rows", work
        for name, (outputs, inputs, group) in GATED.items():
            work = partial(gated_row, bench, outputs, inputs, group, rows)
            yield "low_bit_gated", f"{name} 2 x {outputs} x {inputs}, {rows} rows", work
    for name, (outputs, inputs, group) in PACKED.items():
        for rows in (1, 2, 4, 8, 16):
            work = partial(packed_row, bench, outputs, inputs, group, rows)
            yield "low_bit_product", f"{name} {outputs} x {inputs}, {rows} rows", work


def packed_row(bench: Bench, outputs: int, inputs: int, group: int, rows: int) -> Row:
    """Weights in 4 bits."""
    outputs = bench.pick(outputs, 40)
    x = normal(bench, rows, inputs, dtype=BF16)
    first = packed_of(bench, outputs, inputs, group)
    nbytes = sum(part.nbytes for part in first) + 2 * rows * (inputs + outputs)
    sets = [first, *(tuple(p.clone() for p in first) for _ in range(n_sets(bench, nbytes) - 1))]

    def run(packed: tuple[Tensor, ...]) -> object:
        return low_bit_product(x, packed[0], packed[1], backend=bench.backend)

    return timed_row(bench, run, sets, nbytes)


def several_row(bench: Bench, sizes: tuple[int, ...], inputs: int, group: int, rows: int, added: bool) -> Row:
    """Matrices side by side in one launch."""
    from selfspec_kernels.low_bit_products import low_bit_products
    from selfspec_kernels.low_bit_products_reference import PackedMatrix

    x = normal(bench, rows, inputs, dtype=BF16)
    first = [packed_of(bench, size, inputs, group) for size in bench.sizes(sizes)]
    outputs = sum(scales.shape[1] for _, scales in first)
    residual = normal(bench, rows, outputs, dtype=BF16) if added else None
    nbytes = sum(part.nbytes for pair in first for part in pair)
    nbytes += 2 * rows * (inputs + outputs * (1 + added))
    sets = [
        [PackedMatrix(*(part.clone() for part in pair)) for pair in first]
        for _ in range(n_sets(bench, nbytes))
    ]

    @with_overlap()  # as in a layer
    def run(matrices: list[PackedMatrix]) -> object:
        return low_bit_products(x, matrices, residual=residual, backend=bench.backend)

    return timed_row(bench, run, sets, nbytes)


def gated_row(bench: Bench, outputs: int, inputs: int, group: int, rows: int) -> Row:
    """Both products and the activation in one launch."""
    from selfspec_kernels.low_bit_products import low_bit_gated
    from selfspec_kernels.low_bit_products_reference import PackedMatrix

    outputs = bench.pick(outputs, 40)
    x = normal(bench, rows, inputs, dtype=BF16)
    first = packed_of(bench, outputs, inputs, group)
    nbytes = 2 * sum(part.nbytes for part in first) + 2 * rows * (inputs + outputs)
    sets = [
        [PackedMatrix(*(part.clone() for part in first)) for _ in range(2)]
        for _ in range(n_sets(bench, nbytes))
    ]

    @with_overlap()
    def run(pair: list[PackedMatrix]) -> object:
        return low_bit_gated(x, pair[0], pair[1], activation="silu", backend=bench.backend)

    return timed_row(bench, run, sets, nbytes)

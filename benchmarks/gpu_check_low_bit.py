"""Products with weights in 4 bits against their references."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from gpu_bench import Bench
from gpu_checks import BF16, FP16, FP32, LIMIT, Check, normal, poisoned, worst
from torch import Tensor

from selfspec_kernels.low_bit_product import low_bit_product
from selfspec_kernels.low_bit_product_reference import pack_levels, pack_scales, reference_product


@dataclass(frozen=True)
class ProductCase:
    """A product with a matrix in 4 bits."""

    outputs: int
    inputs: int
    group: int
    rows: int
    dtype: torch.dtype = BF16
    bias: bool = False


PRODUCTS = {
    "1 row, 4096 x 14336": ProductCase(4096, 14_336, 64, 1),
    "8 rows, 14336 x 4096": ProductCase(14_336, 4096, 64, 8),
    "5 rows, 1024 x 4096, bias": ProductCase(1024, 4096, 32, 5, bias=True),
    "17 rows, odd groups": ProductCase(33, 384, 128, 17, bias=True),
    "16 rows, odd vocabulary": ProductCase(151_937, 896, 32, 16),
    "fp16, one output": ProductCase(1, 640, 32, 3, FP16),
    "fp32": ProductCase(2048, 4096, 32, 2, FP32, True),
}


def product_error(bench: Bench, case: ProductCase) -> float:
    """The packed product, its result the dtype's."""
    outputs = bench.pick(case.outputs, min(case.outputs, 40))
    x = normal(bench, case.rows, case.inputs, dtype=case.dtype)
    packed, scales = packed_of(bench, outputs, case.inputs, case.group, case.dtype)
    bias = normal(bench, outputs, dtype=case.dtype) if case.bias else None
    with poisoned():
        found = low_bit_product(x, packed, scales, bias, backend=bench.backend)
    return worst(found, reference_product(x, packed, scales, bias))


def packed_of(
    bench: Bench, outputs: int, inputs: int, group: int, dtype: torch.dtype = BF16
) -> tuple[Tensor, Tensor]:
    """Random levels and scales, packed."""
    levels = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, device=bench.device)
    scale = torch.rand(outputs, inputs // group, device=bench.device) * 0.01 + 0.001
    offset = normal(bench, outputs, inputs // group, scale=0.01)
    return pack_levels(levels, group), pack_scales(scale.to(dtype), offset.to(dtype))


@dataclass(frozen=True)
class SeveralCase:
    """Matrices side by side in one launch."""

    outputs: tuple[int, ...]
    inputs: int
    group: int
    rows: int
    dtype: torch.dtype = BF16
    added: bool = False
    """Whether a residual is added."""


SEVERAL = {
    "queries, keys and values, 1 row": SeveralCase((4096, 1024, 1024), 4096, 32, 1),
    "queries, keys and values, 8 rows": SeveralCase((4096, 1024, 1024), 4096, 32, 8),
    "one matrix, 5 rows, residual": SeveralCase((4096,), 14_336, 64, 5, added=True),
    "two matrices, 17 rows, nothing divides": SeveralCase((333, 77), 384, 128, 17, FP16, True),
    "fp32": SeveralCase((40, 24), 640, 32, 3, FP32, True),
}


def several_error(bench: Bench, case: SeveralCase) -> float:
    """Against each matrix on its own."""
    from selfspec_kernels.low_bit_products import low_bit_products
    from selfspec_kernels.low_bit_products_reference import PackedMatrix

    inputs, rows, dtype = case.inputs, case.rows, case.dtype
    x = normal(bench, rows, inputs, dtype=dtype)
    matrices = [
        PackedMatrix(*packed_of(bench, n, inputs, case.group, dtype)) for n in bench.sizes(case.outputs)
    ]
    total = sum(matrix.outputs for matrix in matrices)
    residual = normal(bench, rows, total, dtype=dtype) if case.added else None
    results = []
    for backend in (bench.backend, "reference"):
        with poisoned():
            results.append(low_bit_products(x, matrices, residual=residual, backend=backend))
    return worst(*results)


def gated_error(bench: Bench, rows: int, dtype: torch.dtype) -> float:
    """The gated half of an MLP."""
    from selfspec_kernels.low_bit_products import low_bit_gated
    from selfspec_kernels.low_bit_products_reference import PackedMatrix

    outputs, inputs = bench.pick((14_336, 4096), (40, 128))
    x = normal(bench, rows, inputs, dtype=dtype)
    gate, up = (PackedMatrix(*packed_of(bench, outputs, inputs, 64, dtype)) for _ in range(2))
    results = []
    for backend in (bench.backend, "reference"):
        with poisoned():
            results.append(low_bit_gated(x, gate, up, activation="silu", backend=backend))
    return worst(*results)


def checks() -> list[Check]:
    """All of them."""
    return [
        *(
            Check("low_bit_product", name, partial(product_error, case=c), LIMIT[c.dtype])
            for name, c in PRODUCTS.items()
        ),
        *(
            Check("low_bit_products", name, partial(several_error, case=case), LIMIT[case.dtype])
            for name, case in SEVERAL.items()
        ),
        *(
            Check("low_bit_gated", f"{rows} rows", partial(gated_error, rows=rows, dtype=dtype), LIMIT[dtype])
            for rows, dtype in ((1, BF16), (8, BF16), (20, FP16), (3, FP32))
        ),
    ]

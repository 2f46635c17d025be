"""Products of few rows with bf16, fp16 and fp32 weights against their references."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from gpu_bench import Bench
from gpu_checks import BF16, FP16, FP32, INFINITY, LIMIT, Check, normal, poisoned, worst


@dataclass(frozen=True)
class NarrowCase:
    """A product with one or more matrices of bf16, fp16 or fp32."""

    outputs: tuple[int, ...]
    inputs: int
    rows: int
    dtype: torch.dtype = BF16
    bias: bool = False
    residual: bool = False


NARROW = {
    "queries, keys and values, 1 row": NarrowCase((4096, 1024, 1024), 4096, 1),
    "queries, keys and values, 8 rows, bias": NarrowCase((4096, 1024, 1024), 4096, 8, bias=True),
    "4096 x 14336, 7 rows, residual": NarrowCase((4096,), 14_336, 7, residual=True),
    "64 rows": NarrowCase((4096,), 4096, 64, residual=True),
    "65 rows, nothing divides": NarrowCase((333, 77), 1000, 65, bias=True),
    "fp16, one output": NarrowCase((1,), 640, 3, FP16),
    "fp32": NarrowCase((512, 96), 2048, 2, FP32, True),
}


def narrow_error(bench: Bench, case: NarrowCase) -> float:
    """All matrices side by side."""
    from selfspec_kernels.narrow_product import narrow_product

    x = normal(bench, case.rows, case.inputs, dtype=case.dtype)
    outputs = bench.sizes(case.outputs)
    weights = [normal(bench, n, case.inputs, dtype=case.dtype, scale=0.02) for n in outputs]
    biases = [normal(bench, n, dtype=case.dtype) for n in outputs] if case.bias else None
    residual = normal(bench, case.rows, sum(outputs), dtype=case.dtype) if case.residual else None
    results = []
    for backend in (bench.backend, "reference"):
        with poisoned():
            results.append(narrow_product(x, weights, biases, residual=residual, backend=backend))
    return worst(*results)


def gated_error(bench: Bench, rows: int, dtype: torch.dtype) -> float:
    """The gated half of an MLP."""
    from selfspec_kernels.narrow_product import gated_product

    outputs, inputs = bench.pick((14_336, 4096), (40, 64))
    x = normal(bench, rows, inputs, dtype=dtype)
    gate, up = (normal(bench, outputs, inputs, dtype=dtype, scale=0.02) for _ in range(2))
    results = []
    for backend in (bench.backend, "reference"):
        with poisoned():
            results.append(gated_product(x, gate, up, backend=backend))
    return worst(*results)


def narrow_bits(bench: Bench) -> float:
    """0 where a row's bits are the same alone and among others."""
    from selfspec_kernels.narrow_product import narrow_product

    x = normal(bench, 40, 1024, dtype=BF16)
    weight = normal(bench, 4096, 1024, dtype=BF16, scale=0.02)
    whole = narrow_product(x, [weight], backend=bench.backend)
    alike = [
        torch.equal(narrow_product(x[:m], [weight], backend=bench.backend), whole[:m])
        for m in (1, 2, 3, 8, 16, 17, 33)
    ]
    return 0.0 if all(alike) or not bench.on_gpu else INFINITY


def checks() -> list[Check]:
    """All of them."""
    return [
        *(
            Check("narrow_product", name, partial(narrow_error, case=c), LIMIT[c.dtype])
            for name, c in NARROW.items()
        ),
        Check("narrow_product", "bits alone and together", narrow_bits, 0.0),
        *(
            Check("gated_product", f"{rows} rows", partial(gated_error, rows=rows, dtype=dtype), LIMIT[dtype])
            for rows, dtype in ((1, BF16), (8, BF16), (20, FP16), (3, FP32))
        ),
    ]

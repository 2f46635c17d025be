"""Runs the narrow product's kernels in Triton's interpreter and prints what came out; see `interpreter`.

Errors are relative to the largest output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType

import torch
from interpreter import guarded, prepare, run
from torch import Tensor

from selfspec_kernels import narrow_product_launch
from selfspec_kernels.narrow_product import gated_product, narrow_product
from selfspec_kernels.narrow_product_reference import Activation, reference_gated, reference_product

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN = float("nan")
WHOLE, SLICED = (32, 32, 4, 1, 3), (16, 64, 4, 4, 3)
"""Plans: outputs, inputs, warps, slices, stages."""


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = FP32
    rows: int = 1
    inputs: int = 64
    sizes: tuple[int, ...] = (40,)
    biases: tuple[bool, ...] = ()
    residual: bool = False
    multiplier: float = 1.0
    activation: Activation | None = None
    """Of a gated product; then there is one size."""
    plan: tuple[int, int, int, int, int] = WHOLE
    apart: bool = False
    """Rows of x and residual, and of weights, lie apart; weights begin inside of another matrix."""
    default: bool = False
    """By the plan that the kernel chooses."""


CASES = {
    "one row, blocks do not divide the outputs": Case(),
    "one input, one output": Case(inputs=1, sizes=(1,)),
    "inputs that steps do not divide": Case(rows=3, inputs=75),
    "slices, inputs that steps do not divide": Case(rows=3, inputs=150, plan=SLICED),
    "seventeen rows": Case(rows=17, inputs=96),
    "slices, seventeen rows": Case(rows=17, inputs=64, plan=SLICED),
    "seventy rows": Case(rows=70, inputs=32, residual=True),
    "three matrices, two biases": Case(
        rows=5, sizes=(70, 33, 17), biases=(True, False, True), plan=SLICED, inputs=128
    ),
    "three matrices apart, three biases": Case(
        rows=4, sizes=(33, 64, 7), biases=(True, True, True), apart=True
    ),
    "two matrices, the second's bias, bf16": Case(
        BF16, rows=2, sizes=(20, 40), biases=(False, True), inputs=160, default=True
    ),
    "residual and multiplier": Case(rows=6, residual=True, multiplier=0.22, biases=(True,)),
    "residual and multiplier, bf16, apart": Case(
        BF16, rows=6, residual=True, multiplier=0.22, apart=True, plan=SLICED
    ),
    "residual, fp16": Case(FP16, rows=2, inputs=80, residual=True, default=True),
    "silu": Case(rows=3, sizes=(45,), activation="silu", inputs=75),
    "silu, slices, bf16": Case(BF16, rows=18, sizes=(20,), activation="silu", inputs=150, plan=SLICED),
    "tanh, fp16, apart": Case(FP16, rows=2, sizes=(33,), activation="gelu_tanh", apart=True),
    "tanh": Case(rows=2, sizes=(33,), activation="gelu_tanh", default=True),
    "erf": Case(rows=2, sizes=(16,), activation="gelu", plan=SLICED),
}
MUTATIONS = {
    # case, source, what it becomes
    "inputs past the last": ("inputs that steps do not divide", "row_in & k_in[:, None]", "row_in"),
    "inputs past the last, slices": (
        "slices, inputs that steps do not divide",
        "row_in & k_in[:, :, None]",
        "row_in",
    ),
    "weights past the last": (
        "inputs that steps do not divide",
        "tl.load(ptrs, mask=k_in, other=0.0)",
        "tl.load(ptrs)",
    ),
    "outputs past the last": (
        "one row, blocks do not divide the outputs",
        "n_in = tl.minimum(n, N - 1)",
        "n_in = tl.minimum(n, N - 2)",
    ),
    "rows of the first tile": ("seventy rows", "tl.program_id(0) * ROWS", "tl.program_id(0) * 0"),
    "one slice": ("slices, seventeen rows", "tl.sum(total, axis=0)", "tl.max(total, axis=0)"),
    "the first slice's inputs": (
        "slices, seventeen rows",
        "tl.arange(0, SLICES)[:, None] * CHUNK",
        "tl.arange(0, SLICES)[:, None] * 0",
    ),
    "the first matrix twice": (
        "three matrices, two biases",
        "weight_ptr = weight1_ptr",
        "weight_ptr = weight0_ptr",
    ),
    "the second matrix twice": (
        "three matrices, two biases",
        "weight_ptr = weight2_ptr",
        "weight_ptr = weight1_ptr",
    ),
    "the second's stride": (
        "three matrices apart, three biases",
        "tl.cast(stride2, tl.int64)",
        "tl.cast(stride1, tl.int64)",
    ),
    "the second's place": ("three matrices, two biases", "start = tl.cast(N0 + N1,", "start = tl.cast(N1,"),
    "the first's bias": (
        "three matrices apart, three biases",
        "_add_bias(total, bias1_ptr",
        "_add_bias(total, bias0_ptr",
    ),
    "no third bias": ("three matrices, two biases", "_add_bias(total, bias2_ptr", "_add_bias(total, None"),
    "no multiplier": ("residual and multiplier", "out.to(tl.float32) * multiplier", "out.to(tl.float32)"),
    "residual times multiplier": (
        "residual and multiplier",
        "(residual.to(tl.float32) + scaled)",
        "(residual.to(tl.float32) * multiplier + scaled)",
    ),
    "residual's rows": (
        "residual and multiplier, bf16, apart",
        "r_at * residual_stride",
        "r_at * out_stride",
    ),
    "gate and up": ("silu", "gate, up = _sums(", "up, gate = _sums("),
    "gate twice": ("silu, slices, bf16", "second = _dot(_load(up_ptrs", "second = _dot(_load(weight_ptrs"),
    "no gate": ("silu", "out = (acted *", "out = (1.0 *"),
    "a sigmoid": ("silu", "tl.div_rn(x, 1.0 + tl.exp(-x))", "tl.div_rn(1.0, 1.0 + tl.exp(-x))"),
    "no cube": ("tanh", "0.044715", "0.0"),
    "erf without its scale": ("erf", "0.7071067811865476", "1.0"),
}


def matrix(rows: int, columns: int, case: Case, draw: torch.Generator, scale: float = 1.0) -> Tensor:
    """Random; with NaN around it, and between its rows where they lie apart."""
    values = (torch.randn(rows, columns, generator=draw) * scale).to(case.dtype)
    if not case.apart:
        return guarded(values, NAN)
    wide = torch.full((rows, columns + 8 + rows), NAN, dtype=case.dtype)
    wide[:, 8 : columns + 8] = values
    return guarded(wide, NAN)[:, 8 : columns + 8]


def found_and_expected(case: Case, launch: ModuleType) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(case.inputs + sum(case.sizes))
    x = matrix(case.rows, case.inputs, case, draw)
    sizes = case.sizes if case.activation is None else case.sizes * 2
    weights = [matrix(n, case.inputs, case, draw, case.inputs**-0.5) for n in sizes]
    chosen = None if case.default else launch.Plan(*case.plan)
    if case.activation:
        found = launch.gated(x, *weights, case.activation, chosen)
        return found, reference_gated(x, *weights, case.activation)
    drawn = [guarded(torch.randn(n, generator=draw).to(case.dtype), NAN) for n in sizes]
    biases = [
        bias if there else None for bias, there in zip(drawn, case.biases or (False,) * 3, strict=False)
    ]
    residual = matrix(case.rows, sum(sizes), case, draw) if case.residual else None
    found = launch.product(x, weights, biases, residual, case.multiplier, chosen)
    return found, reference_product(x, weights, biases, residual, case.multiplier)


def error(case: Case, launch: ModuleType) -> float:
    """Largest difference to the reference over the largest output; infinity where an output is not finite."""
    found, expected = found_and_expected(case, launch)
    relative = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    return float(relative) if found.isfinite().all() else float("inf")


def not_a_number() -> list[list[int]]:
    """Of 20 rows, the sixth with a NaN: which rows of the result have one."""
    x, weight = torch.ones(20, 70), torch.ones(9, 70)
    x[5, 3] = NAN
    found = []
    for plan in (WHOLE, SLICED):
        out = narrow_product_launch.product(x, [weight], [None], chosen=narrow_product_launch.Plan(*plan))
        found.append(out.isnan().any(dim=1).nonzero().flatten().tolist())
    return found


def far_apart() -> list[float]:
    """Weights that begin 2^31 elements behind the first one's."""
    import numpy as np

    # Memory that takes no room until it is written.
    weight = torch.from_numpy(np.empty(2**31 + 16, dtype=np.int16)).view(FP16)
    weight = weight.as_strided((3, 16), (2**30, 1))
    for row in range(3):
        weight[row] = row
    return narrow_product(torch.ones(1, 16, dtype=FP16), [weight], backend="triton")[0].tolist()


def dispatched() -> list[list[int]]:
    """Shapes of what the dispatchers hand back; no rows too, and x with strides of its own."""
    x, weight = torch.ones(2, 3, 16), torch.eye(16)
    turned = torch.arange(48.0).view(16, 3).t()
    assert torch.equal(
        narrow_product(turned, [weight], residual=turned.clone(), backend="triton"), 2 * turned
    )
    assert torch.equal(
        narrow_product(x, [weight], residual=torch.ones(16).expand_as(x), backend="triton"), 2 * x
    )
    return [
        list(out.shape)
        for out in (
            narrow_product(x, [weight, weight[:5]], backend="triton"),
            narrow_product(x[:0], [weight], backend="triton"),
            gated_product(x[0, 0], weight[:3], weight[3:6], backend="triton"),
            gated_product(x[:0], weight, weight, backend="triton"),
        )
    ]


def main() -> None:
    prepare()
    results: dict = run(CASES, MUTATIONS, error, "narrow_product_launch")
    results["dtypes"] = {name: str(case.dtype) for name, case in CASES.items()}
    results |= {"nan": not_a_number(), "far apart": far_apart(), "dispatched": dispatched()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()

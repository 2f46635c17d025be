"""Runs the fused low-bit kernels in Triton's interpreter and prints what came out; see `interpreter`.

Errors are relative to the largest output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from interpreter import guarded, prepare, run
from torch import Tensor

from selfspec_kernels import low_bit_products_launch
from selfspec_kernels.low_bit_product_reference import pack_levels, pack_scales
from selfspec_kernels.low_bit_products import low_bit_gated, low_bit_products
from selfspec_kernels.low_bit_products_reference import PackedMatrix, reference_gated, reference_products

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    outputs: tuple[int, ...]
    inputs: int = 96
    group: int = 32
    rows: int = 1
    dtype: torch.dtype = FP16
    biases: tuple[int, ...] = ()
    """Of which matrices."""
    residual: bool = False
    multiplier: float = 1.0
    activation: str | None = None
    """Of a gated product."""
    cut: tuple[int, int, int] | None = None
    """Outputs a program, slices, steps under way."""


CASES = {
    "one matrix": Case((40,)),
    "one output": Case((1,), 32),
    "three matrices within one block": Case((5, 3, 4), rows=2, biases=(0, 1, 2)),
    "two matrices, several steps": Case((33, 20), 1120, rows=3, biases=(1,), cut=(16, 4, 2)),
    "three matrices, a residual": Case((20, 17, 30), 192, 64, 5, residual=True, biases=(0, 2)),
    "a residual and a multiplier": Case((50,), 384, 128, 2, residual=True, multiplier=0.22),
    "a multiplier alone": Case((18,), multiplier=3.3),
    "bf16, more rows than a block": Case((33, 7), 192, rows=18, dtype=BF16, residual=True, biases=(0, 1)),
    "blocks of 32": Case((40, 30), 192, rows=9, cut=(32, 4, 1)),
    "blocks of 64, even steps": Case((70,), 1024, 64, 2, cut=(64, 4, 2)),
    "fp32": Case((10, 20), dtype=FP32, residual=True, multiplier=0.5, biases=(0,)),
    "gated by silu": Case((20, 20), rows=3, activation="silu"),
    "gated by gelu, several steps, biases": Case(
        (9, 9), 1120, biases=(0, 1), activation="gelu", cut=(32, 4, 2)
    ),
    "gated by the tanh of gelu, blocks of 64": Case(
        (33, 33), 192, 64, 18, BF16, biases=(1,), activation="gelu_tanh", cut=(64, 4, 1)
    ),
    "gated, fp32": Case((7, 7), dtype=FP32, activation="silu"),
}
MUTATIONS = {
    "the first tiles of a matrix for all": (
        "two matrices, several steps",
        "own = (t - _third(t, T1, T2, 0, T1, T1 + T2)).to",
        "own = (t * 0).to",
    ),
    "the first matrix for all": (
        "two matrices, several steps",
        "packed_1_ptr, packed_2_ptr, packed_3_ptr) +",
        "packed_1_ptr, packed_1_ptr, packed_3_ptr) +",
    ),
    "scales of the first matrix": (
        "three matrices, a residual",
        "pairs_1_ptr, pairs_2_ptr, pairs_3_ptr) +",
        "pairs_1_ptr, pairs_2_ptr, pairs_1_ptr) +",
    ),
    "groups as far apart as the first matrix's": (
        "three matrices, a residual",
        "apart = _third(t, T1, T2, N1, N2, N3)",
        "apart = _third(t, T1, T2, N1, N1, N1)",
    ),
    "bias of the wrong matrix": (
        "three matrices within one block",
        "bias_3_ptr, tl.where(own_in, n, N) - N1 - N2, N3",
        "bias_3_ptr, tl.where(own_in, n, N), N3",
    ),
    "a step less": ("two matrices, several steps", "SLICES * AHEAD) - 1,", "SLICES * AHEAD) - 2,"),
    "rows of the first block": (
        "bf16, more rows than a block",
        "tl.program_id(1).to",
        "(tl.program_id(1) * 0).to",
    ),
    "no residual": ("three matrices, a residual", ".to(tl.float32) + residual", ".to(tl.float32)"),
    "no multiplier": ("a residual and a multiplier", "* multiplier", "* 1.0"),
    "the residual is scaled too": (
        "a residual and a multiplier",
        "    if residual_ptr is not None:\n        out = out.to(dtype).to(tl.float32) + residual\n",
        "    out = out + residual * multiplier\n",
    ),
    "up is gated": ("gated by silu", "gate, up = tl.split", "up, gate = tl.split"),
    "gate twice": (
        "gated by silu",
        "tl.where(row < HALF, gate_ptr, up_ptr)",
        "tl.where(row < HALF, gate_ptr, gate_ptr)",
    ),
    "gate's scales twice": (
        "gated by silu",
        "tl.where(output < HALF * 16, gate_pairs_ptr, up_pairs_ptr)",
        "tl.where(output < HALF * 16, gate_pairs_ptr, gate_pairs_ptr)",
    ),
    "gate's bias twice": ("gated by gelu, several steps, biases", "up + up_bias", "up + gate_bias"),
    "one gelu for the other": ("gated by gelu, several steps, biases", "tl.erf(x * 0.7", "tl.erf(x * 0.5"),
    "silu for gelu": ("gated by the tanh of gelu, blocks of 64", 'ACTIVATION == "silu"', "True"),
}


def operands(case: Case) -> tuple[Tensor, list[PackedMatrix], Tensor | None]:
    """x, matrices and residual."""
    draw = torch.Generator().manual_seed(case.inputs + sum(case.outputs))

    def normal(*shape: int) -> Tensor:
        return guarded(torch.randn(*shape, generator=draw).to(case.dtype), NAN)

    matrices = []
    for i, n in enumerate(case.outputs):
        q = torch.randint(0, 16, (n, case.inputs), dtype=torch.uint8, generator=draw)
        scale = torch.rand(n, case.inputs // case.group, generator=draw) * 0.02 + 0.002
        offset = torch.randn(n, case.inputs // case.group, generator=draw) * 0.02
        matrices.append(
            PackedMatrix(
                guarded(pack_levels(q, case.group), 255),
                guarded(pack_scales(scale, offset).to(case.dtype), NAN),
                normal(n) if i in case.biases else None,
            )
        )
    x = normal(case.rows, case.inputs)
    return x, matrices, normal(case.rows, sum(case.outputs)) if case.residual else None


def error(case: Case, launch: ModuleType) -> float:
    """Largest difference to the reference over the largest output; infinity where an output is not finite."""
    x, matrices, residual = operands(case)
    chosen = launch.plan(case.rows, sum(case.outputs), case.inputs, case.group, 132)
    if case.cut:
        block_n, slices, stages = case.cut
        chosen = replace(chosen, block_n=block_n, slices=slices, warps=slices, stages=stages)
    if case.activation is None:
        out = launch.products(x, matrices, residual, case.multiplier, chosen)
        expected = reference_products(x, matrices, residual, case.multiplier)
    else:
        out = launch.gated(x, *matrices, case.activation, chosen)
        expected = reference_gated(x, *matrices, case.activation)
    relative = (out.float() - expected.float()).abs().max() / expected.float().abs().max()
    return float(relative) if out.isfinite().all() else float("inf")


def dispatched() -> list[bool]:
    """Whether the dispatcher's answers are the kernels', in shape and value, however its inputs lie."""
    x, matrices, residual = operands(CASES["three matrices, a residual"])
    expected = low_bit_products_launch.products(x, matrices, residual, 1.0)
    same = []
    for lain in (torch.Tensor.contiguous, spread, in_columns):
        found = low_bit_products(lain(x)[None], matrices, residual=lain(residual)[None], backend="triton")
        same.append(torch.equal(found[0], expected))
    x, matrices, _ = operands(CASES["gated by silu"])
    expected = low_bit_products_launch.gated(x, *matrices, "silu")
    for lain in (torch.Tensor.contiguous, spread, in_columns):
        found = low_bit_gated(lain(x)[None], *matrices, activation="silu", backend="triton")
        same.append(torch.equal(found[0], expected))
    return same


def spread(tensor: Tensor) -> Tensor:
    """Every element between others."""
    return torch.stack([tensor, torch.full_like(tensor, NAN)], dim=-1)[..., 0]


def in_columns(tensor: Tensor) -> Tensor:
    """Rows lie inside of columns."""
    return tensor.t().contiguous().t()


def main() -> None:
    prepare()
    results = run(CASES, MUTATIONS, error, "low_bit_products_launch")
    results["dtypes"] = {name: str(case.dtype) for name, case in CASES.items()}
    print(json.dumps(results | {"dispatched": dispatched()}))


if __name__ == "__main__":
    main()

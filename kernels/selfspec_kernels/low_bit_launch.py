"""How products with weights in 4 bits are cut into Triton programs: only where triton is installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import interpreted, on, options, pdl_of, processors
from selfspec_kernels.low_bit_kernels import add_kernel, sum_kernel
from selfspec_kernels.low_bit_product_reference import TILE_INPUTS, TILE_OUTPUTS
from selfspec_kernels.low_bit_products_kernels import products_kernel
from selfspec_kernels.low_bit_products_reference import PackedMatrix
from selfspec_kernels.low_bit_tile_kernels import BF16_BASE, FP16_BASE

_MANY_STEPS = 8
"""Splitting pays for a second launch (1-2 us) only when a program has at least this many steps."""
_ADDED = 256
"""Elements that a program of `add_kernel` adds up."""

FEW = (
    (1, (1, 16, 4)),
    (2, (1, 8, 4)),
    (4, (2, 4, 4)),
)
"""Tiles a program, slices and tiles under way, where there are at most so many tiles a multiprocessor."""
MANY = (2, 4, 1)
"""The same where there are more."""
_REGISTERS = 64
"""Most tiles under way times rows: what they take of a thread's registers is not spilled."""


@dataclass(frozen=True)
class Plan:
    """How one product is launched."""

    kernel: Literal["dot", "sum"]
    block_m: int
    """Rows a program."""
    block_n: int
    """Outputs a program."""
    slices: int
    """Tiles of an output that are worked on side by side; of "dot" each belongs to a warp."""
    warps: int
    stages: int
    """Steps whose weights are under way at a time."""
    splits: int = 1
    """Programs that share the inputs of an output; of "dot" there is one."""


def plan(m: int, n: int, k: int, group: int, dtype: torch.dtype, processors: int) -> Plan:
    """The launch for m rows on a device with this many multiprocessors; splits do not depend on m."""
    if dtype != torch.float32:
        return dot_plan(m, n, k, group, processors)
    block_m = 1 if m == 1 else 4
    slices, warps = (8, 4) if m == 1 else (4, 8)
    steps = triton.cdiv(triton.cdiv(k, TILE_INPUTS), slices)
    programs = triton.cdiv(n, TILE_OUTPUTS)
    splits = 1
    if steps >= _MANY_STEPS and 4 * programs < 3 * processors:
        splits = min(triton.cdiv(processors, programs), steps // 2)
    return Plan("sum", block_m, TILE_OUTPUTS, slices, warps, 3, splits)


def dot_plan(m: int, n: int, k: int, group: int, processors: int) -> Plan:
    """The launch for m rows of 16-bit x; n counts the outputs of all matrices, gate and up too.

    Rows decide nothing but how many of them a program takes. All programs run at once where they can (64
    registers for each tile that a warp has under way, 104 for four), and have together more bytes under way
    than memory needs to stay busy: about 20 KB a multiprocessor on an H100.
    """
    rows = triton.cdiv(n, TILE_OUTPUTS)
    block_m = 8 if m <= 8 else 16
    tiles, slices, ahead = next((cut for most, cut in FEW if rows <= most * processors), MANY)
    ahead = max(1, min(ahead, _REGISTERS // (tiles * block_m)))
    # What does not come out even costs half as many instructions again.
    smaller = [(s, a) for s in (16, 8, 4) for a in (8, 4, 2, 1) if s <= slices and s * a <= slices * ahead]
    fitting = [(s, a) for s, a in smaller if k % (TILE_INPUTS * s * a) == 0]
    slices, ahead = max(fitting, default=(slices, ahead), key=lambda cut: (cut[0] * cut[1], cut[0]))
    return Plan("dot", block_m, tiles * TILE_OUTPUTS, slices, slices, ahead)


def candidates(m: int, n: int, k: int, group: int, dtype: torch.dtype, processors: int) -> list[Plan]:
    """Plans worth a try for m rows, the default first."""
    default = plan(m, n, k, group, dtype, processors)
    if default.kernel == "sum":
        return [default]
    return list(dict.fromkeys([default, *dot_candidates(m, k)]))


def dot_candidates(m: int, k: int) -> list[Plan]:
    """Plans worth a try for m rows of 16-bit x; all of them take any number of outputs."""
    block_m = 8 if m <= 8 else 16
    cuts = (
        (1, 8, 2), (1, 8, 4), (1, 4, 4), (1, 16, 2), (1, 4, 2), (1, 16, 4), (1, 4, 8), (1, 8, 8), (1, 8, 1),
        (2, 4, 1), (2, 8, 1), (2, 4, 2), (2, 8, 2), (2, 4, 4), (2, 16, 1), (4, 4, 1), (4, 8, 1), (4, 4, 2),
    )  # fmt: skip
    return [
        Plan("dot", block_m, tiles * TILE_OUTPUTS, slices, slices, ahead)
        for tiles, slices, ahead in cuts
        if k % (TILE_INPUTS * slices * ahead) == 0 and tiles * ahead * block_m <= _REGISTERS
    ]


def product(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, chosen: Plan | None = None
) -> Tensor:
    """`low_bit_product` for checked x [m, K], contiguous; by `plan` unless a plan is handed over."""
    (m, k), (groups, n, _) = x.shape, scales.shape
    chosen = chosen or plan(m, n, k, k // groups, x.dtype, processors(x.device))
    if chosen.kernel == "dot":
        return dot_products(x, [PackedMatrix(packed, scales, bias)], None, 1.0, chosen)
    whole = chosen.splits == 1
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    parts = out if whole else torch.empty(chosen.splits, m, n, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(n, chosen.block_n), chosen.splits, triton.cdiv(m, chosen.block_m))
    with on(x.device):
        sum_kernel[grid](
            x, packed, scales, bias if whole else None, parts, m, n, k, **sum_constants(chosen, k // groups),
            **options(chosen.warps),
        )  # fmt: skip
        if not whole:
            adding = (triton.cdiv(m * n, _ADDED),)
            add_kernel[adding](parts, bias, out, n, m * n, chosen.splits, BLOCK=_ADDED, **options(4))
    return out


def dot_products(
    x: Tensor, matrices: Sequence[PackedMatrix], residual: Tensor | None, multiplier: float, chosen: Plan
) -> Tensor:
    """`low_bit_products` for checked x [m, K] in 16 bits and residual, contiguous."""
    (m, k), sizes = x.shape, [matrix.outputs for matrix in matrices]
    out = torch.empty(m, sum(sizes), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    three = [*matrices, *[matrices[0]] * (3 - len(matrices))]
    biases = [matrix.bias for matrix in matrices] + [None] * (3 - len(matrices))
    rows = sum(triton.cdiv(size, TILE_OUTPUTS) for size in sizes)
    fixed = constants(chosen, k, k // len(matrices[0].scales), x.dtype) | {"PLAIN": interpreted()}
    with on(x.device):
        products_kernel[triton.cdiv(rows * TILE_OUTPUTS, chosen.block_n), triton.cdiv(m, chosen.block_m)](
            x, *map(words, three), *map(pairs, three), *biases, residual, out, m,
            *sizes, *[0] * (3 - len(sizes)), k, None if multiplier == 1.0 else multiplier,
            **fixed, **options(chosen.warps, pdl_of(x.device)),
        )  # fmt: skip
    return out


def words(matrix: PackedMatrix) -> Tensor:
    """Levels as kernels load them."""
    return matrix.packed.view(torch.int32)


def pairs(matrix: PackedMatrix) -> Tensor:
    """Scale and offset in one number, as kernels for 16-bit x load them."""
    return matrix.scales.view(torch.int32)


def constants(chosen: Plan, k: int, group: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments of the kernels for 16-bit x, PLAIN and PDL left out."""
    return {
        "GROUP": group,
        "TILES": chosen.block_n // TILE_OUTPUTS,
        "BLOCK_M": chosen.block_m,
        "SLICES": chosen.slices,
        "AHEAD": chosen.stages,
        "EVEN": k % (TILE_INPUTS * chosen.slices * chosen.stages) == 0,
        "BASE": (FP16_BASE if dtype == torch.float16 else BF16_BASE).value,
    }


def sum_constants(chosen: Plan, group: int) -> dict[str, Any]:
    """Compile-time arguments of `sum_kernel`."""
    return {
        "GROUP": group,
        "BLOCK_N": chosen.block_n,
        "BLOCK_M": chosen.block_m,
        "SLICES": chosen.slices,
        "STAGES": chosen.stages,
    }

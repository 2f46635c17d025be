"""How `low_bit_products` and `low_bit_gated` are cut into Triton programs: only where triton is installed."""

from collections.abc import Sequence
from itertools import product

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import interpreted, on, options, processors
from selfspec_kernels.low_bit_launch import Plan, constants
from selfspec_kernels.low_bit_launch import product as one_product
from selfspec_kernels.low_bit_products import Activation, PackedMatrix, added, multiplied
from selfspec_kernels.low_bit_products_kernels import gated_kernel, products_kernel

_PROGRAMS = 4
"""Programs a multiprocessor below which outputs are cut smaller: two or three run at a time, and the last
wave of them should not leave many idle."""
_SHARED_MEMORY = 160 * 1024
"""Bytes that a plan to try may take, by estimate: what sm_80 has."""


def plan(m: int, n: int, k: int, group: int, processors: int) -> Plan:
    """The launch for m rows of 16-bit x; n counts the outputs of all matrices, gate and up too.

    Rows decide nothing but how many of them a program takes.
    """
    block_m, chunk = (8 if m <= 8 else 16), min(group, 64)
    block_n = 32 if triton.cdiv(n, 32) >= _PROGRAMS * processors else 16
    return Plan("dot", block_m, block_n, chunk, 8, 8, 4 if chunk == 32 else 3, 1)


def candidates(m: int, k: int, group: int) -> list[Plan]:
    """Plans worth a try for m rows; all of them take any number of outputs."""
    found = []
    for block_n, chunk, warps, stages in product((16, 32, 64), (32, 64, 128), (4, 8), (2, 3, 4, 5)):
        if chunk > group:
            continue
        block_m = 8 if m <= 8 else 16
        # Levels, and x twice in 16 bits.
        step = warps * chunk * (block_n + 4 * block_m)
        if step * (stages - 1) <= _SHARED_MEMORY and warps * chunk * (stages - 2) < k // 2:
            found.append(Plan("dot", block_m, block_n, chunk, warps, warps, stages, 1))
    return found


def products(
    x: Tensor,
    matrices: Sequence[PackedMatrix],
    residual: Tensor | None,
    multiplier: float,
    chosen: Plan | None = None,
) -> Tensor:
    """`low_bit_products` for checked x [m, K] and residual, contiguous; by `plan` unless told otherwise."""
    if x.dtype == torch.float32:
        # Tensor cores would round fp32; nothing here is made for its speed.
        parts = [one_product(x, matrix.packed, matrix.scales, matrix.bias) for matrix in matrices]
        return added(torch.cat(parts, dim=-1), residual, multiplier)
    (m, k), sizes = x.shape, [len(matrix.packed) for matrix in matrices]
    outputs, group = sum(sizes), k // len(matrices[0].scales)
    out = torch.empty(m, outputs, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    chosen = chosen or plan(m, outputs, k, group, processors(x.device))
    three = [*matrices, *[matrices[0]] * (3 - len(matrices))]
    biases = [matrix.bias for matrix in matrices] + [None] * (3 - len(matrices))
    fixed = constants(chosen, group, x.dtype) | {"PLAIN": interpreted()} | options(chosen.warps)
    with on(x.device):
        products_kernel[triton.cdiv(outputs, chosen.block_n), triton.cdiv(m, chosen.block_m)](
            x, *(matrix.packed for matrix in three), *(matrix.scales.view(torch.int32) for matrix in three),
            *biases, residual, out, m, *sizes, *[0] * (3 - len(sizes)), k, matrices[0].packed.shape[1],
            None if multiplier == 1.0 else multiplier, **fixed,
        )  # fmt: skip
    return out


def gated(
    x: Tensor, gate: PackedMatrix, up: PackedMatrix, activation: Activation, chosen: Plan | None = None
) -> Tensor:
    """`low_bit_gated` for checked x [m, K], contiguous; by `plan` unless a plan is handed over."""
    if x.dtype == torch.float32:
        first, second = (one_product(x, one.packed, one.scales, one.bias) for one in (gate, up))
        return multiplied(first, second, activation)
    (m, k), (n, row_bytes) = x.shape, gate.packed.shape
    group = k // len(gate.scales)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    chosen = chosen or plan(m, 2 * n, k, group, processors(x.device))
    fixed = constants(chosen, group, x.dtype) | {"PLAIN": interpreted(), "ACTIVATION": activation}
    with on(x.device):
        gated_kernel[triton.cdiv(2 * n, chosen.block_n), triton.cdiv(m, chosen.block_m)](
            x, gate.packed, up.packed, gate.scales.view(torch.int32), up.scales.view(torch.int32),
            gate.bias, up.bias, out, m, n, k, row_bytes, **fixed, **options(chosen.warps),
        )  # fmt: skip
    return out

"""How `low_bit_products` and `low_bit_gated` are cut into Triton programs: only where triton is installed."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import interpreted, on, options, pdl_of, processors
from selfspec_kernels.low_bit_launch import (
    Plan,
    constants,
    dot_candidates,
    dot_plan,
    dot_products,
    pairs,
    words,
)
from selfspec_kernels.low_bit_launch import product as one_product
from selfspec_kernels.low_bit_product_reference import TILE_OUTPUTS
from selfspec_kernels.low_bit_products_kernels import gated_kernel
from selfspec_kernels.low_bit_products_reference import Activation, PackedMatrix, added, multiplied

plan = dot_plan


def candidates(m: int, k: int, group: int) -> list[Plan]:
    """Plans worth a try for m rows, `low_bit_gated` included; all of them take any number of outputs."""
    return dot_candidates(m, k)


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
    (m, k), outputs = x.shape, sum(matrix.outputs for matrix in matrices)
    chosen = chosen or plan(m, outputs, k, k // len(matrices[0].scales), processors(x.device))
    return dot_products(x, matrices, residual, multiplier, chosen)


def gated(
    x: Tensor, gate: PackedMatrix, up: PackedMatrix, activation: Activation, chosen: Plan | None = None
) -> Tensor:
    """`low_bit_gated` for checked x [m, K], contiguous; by `plan` unless a plan is handed over.

    A program takes one row of tiles of each matrix at least, whatever the plan says.
    """
    if x.dtype == torch.float32:
        first, second = (one_product(x, one.packed, one.scales, one.bias) for one in (gate, up))
        return multiplied(first, second, activation)
    (m, k), n = x.shape, gate.outputs
    group = k // len(gate.scales)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    chosen = chosen or plan(m, 2 * n, k, group, processors(x.device))
    block_n = max(chosen.block_n, 2 * TILE_OUTPUTS)
    fixed = constants(chosen, k, group, x.dtype) | {"TILES": block_n // TILE_OUTPUTS}
    fixed |= {"PLAIN": interpreted(), "ACTIVATION": activation}
    with on(x.device):
        gated_kernel[triton.cdiv(2 * n, block_n), triton.cdiv(m, chosen.block_m)](
            x, words(gate), words(up), pairs(gate), pairs(up), gate.bias, up.bias, out, m, n, k,
            **fixed, **options(chosen.warps, pdl_of(x.device)),
        )  # fmt: skip
    return out

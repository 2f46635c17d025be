"""How `low_bit_product` is cut into Triton programs: import this only where triton is installed."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import interpreted, on, options, processors
from selfspec_kernels.low_bit_dot_kernels import BF16_BASE, FP16_BASE
from selfspec_kernels.low_bit_kernels import add_kernel, dot_kernel, sum_kernel

_MANY_STEPS = 8
"""Splitting pays for a second launch (1-2 us) only when a program has at least this many steps."""
_ADDED = 256
"""Elements that a program of `add_kernel` adds up."""


@dataclass(frozen=True)
class Plan:
    """How one product is launched."""

    kernel: Literal["dot", "sum"]
    block_m: int
    """Rows a program."""
    block_n: int
    """Outputs a program."""
    chunk: int
    """Bytes of an output that make one slice of a step."""
    slices: int
    warps: int
    stages: int
    splits: int
    """Programs that share the inputs of an output."""


def plan(m: int, n: int, k: int, group: int, dtype: torch.dtype, processors: int) -> Plan:
    """The launch for m rows on a device with this many multiprocessors; splits do not depend on m."""
    if dtype == torch.float32:
        kernel: Literal["dot", "sum"] = "sum"
        block_m, block_n, chunk = (1 if m == 1 else 4), 16, 32
        slices, warps, stages = (8, 4, 3) if m == 1 else (4, 8, 3)
    else:
        kernel = "dot"
        block_m, block_n, chunk = (8 if m <= 8 else 16), 32, min(group, 64)
        slices, warps, stages = 8, 8, (4 if chunk == 32 else 3)
    steps = triton.cdiv(triton.cdiv(k, 2 * group) * group, chunk * slices)
    programs = triton.cdiv(n, block_n)
    splits = 1
    if steps >= _MANY_STEPS and 4 * programs < 3 * processors:
        splits = min(triton.cdiv(processors, programs), steps // 2)
    return Plan(kernel, block_m, block_n, chunk, slices, warps, stages, splits)


def product(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, chosen: Plan | None = None
) -> Tensor:
    """`low_bit_product` for checked x [m, K], contiguous; by `plan` unless a plan is handed over."""
    (m, k), n = x.shape, len(packed)
    group = k // len(scales)
    chosen = chosen or plan(m, n, k, group, x.dtype, processors(x.device))
    whole = chosen.splits == 1
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    parts = out if whole else torch.empty(chosen.splits, m, n, dtype=torch.float32, device=x.device)
    with on(x.device):
        _launch(chosen, group, x, packed, scales, bias if whole else None, parts)
        if not whole:
            adding = (triton.cdiv(m * n, _ADDED),)
            add_kernel[adding](parts, bias, out, n, m * n, chosen.splits, BLOCK=_ADDED, **options(4))
    return out


def _launch(
    chosen: Plan, group: int, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    (m, k), (n, row_bytes) = x.shape, packed.shape
    grid = (triton.cdiv(n, chosen.block_n), chosen.splits, triton.cdiv(m, chosen.block_m))
    fixed = constants(chosen, group, x.dtype) | {"PLAIN": interpreted()} | options(chosen.warps)
    if chosen.kernel == "dot":
        pairs = scales.view(torch.int32)
        dot_kernel[grid](x, packed, pairs, bias, out, m, n, k, row_bytes, **fixed)
    else:
        sum_kernel[grid](x, packed, scales, bias, out, m, n, k, row_bytes, **fixed)


def constants(chosen: Plan, group: int, dtype: torch.dtype) -> dict[str, Any]:
    """The kernel's compile-time arguments, PLAIN left out."""
    base = FP16_BASE if chosen.kernel == "dot" and dtype == torch.float16 else BF16_BASE
    return {
        "GROUP": group,
        "CHUNK": chosen.chunk,
        "BLOCK_N": chosen.block_n,
        "BLOCK_M": chosen.block_m,
        "SLICES": chosen.slices,
        "STAGES": chosen.stages,
        "BASE": base.value,
    }

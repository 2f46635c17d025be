"""How `row_norm` is launched: import this only where triton is installed."""

from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import on, options, pdl_of
from selfspec_kernels.row_norm_kernels import norm_kernel
from selfspec_kernels.row_norm_reference import Norm


def normalized(
    hidden: Tensor, norm: Norm | None, down: Tensor | None = None, up: Tensor | None = None
) -> Tensor:
    """norm(hidden + (hidden down^T) up) for checked hidden [B, m, D], contiguous; down and up [r, D]."""
    batch, width, inputs = hidden.shape
    hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
    out = torch.empty(batch, width, inputs, dtype=hidden.dtype, device=hidden.device)
    if not out.numel():
        return out
    fixed = constants(inputs, norm.kind if norm else None)
    with on(hidden.device):
        norm_kernel[(batch * width,)](
            hidden, down, up, norm.weight if norm else None, norm.bias if norm else None, out,
            width, inputs, 0 if down is None else len(down), hidden.stride(0), hidden.stride(1),
            norm.eps if norm else 0.0, **fixed, **options(warps(inputs), pdl_of(hidden.device)),
        )  # fmt: skip
    return out


def constants(inputs: int, kind: str | None) -> dict[str, Any]:
    """The kernel's compile-time arguments, PDL left out: of the low-rank map 8,192 elements at once."""
    block = max(16, triton.next_power_of_2(inputs))
    return {"KIND": kind, "BLOCK_D": block, "BLOCK_R": max(1, 8192 // block)}


def warps(inputs: int) -> int:
    """Sixteen elements a thread for a row of 4,096."""
    return 4 if inputs <= 2048 else 8

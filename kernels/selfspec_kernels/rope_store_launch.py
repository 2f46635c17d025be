"""How `rope_store` is launched: import this only where triton is installed."""

from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import on, options, pdl_of
from selfspec_kernels.rope_store_kernels import rope_store_kernel
from selfspec_kernels.rope_store_reference import Projections

WARPS = 1


def store(new: Projections) -> Tensor:
    """`rope_store` on the GPU."""
    qkv, keys, values = new.qkv, new.keys, new.values
    rows, width, _ = qkv.shape
    kv_heads, size = keys.shape[1], keys.shape[3]
    query = torch.empty(rows, new.heads, width, size, dtype=qkv.dtype, device=qkv.device)
    if not query.numel():
        return query
    turning = 0 if new.cos is None else new.cos.shape[-1]
    with on(qkv.device):
        rope_store_kernel[rows * width, new.heads + 2 * kv_heads](
            qkv, new.cos, new.sin, new.query_norm, new.key_norm, new.slots, query, keys, values,
            width, new.heads, kv_heads, new.eps,
            *qkv.stride()[:2], *_strides(new.cos), *_strides(new.sin), new.slots.stride(0),
            *keys.stride()[:3], *values.stride()[:3], **constants(size, turning),
            **options(WARPS, pdl_of(qkv.device)),
        )  # fmt: skip
    return query


def constants(size: int, turning: int) -> dict[str, Any]:
    """The kernel's compile-time arguments, PDL left out."""
    return {"SIZE": size, "TURNING": turning, "BLOCK": triton.next_power_of_2(size)}


def _strides(angles: Tensor | None) -> tuple[int, int]:
    return (0, 0) if angles is None else (angles.stride(0), angles.stride(1))

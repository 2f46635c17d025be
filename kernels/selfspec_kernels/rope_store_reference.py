"""What `rope_store` takes, with its checks, and the same in plain PyTorch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec_kernels.backend import KernelInputError, check, check_together

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST_HEAD = 512
"""Dh: a head is held in the registers of one warp."""


@dataclass(frozen=True)
class Projections:
    """Projections of the new tokens, and where they go.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, or a head that is
            too large.
    """

    qkv: Tensor
    """[B, m, (H + 2 Hkv) Dh], bf16, fp16 or fp32, contiguous in the last dimension: query heads, key heads,
    value heads."""
    cos: Tensor | None
    """[B, m, R] as Hugging Face's rotary modules return it, both halves alike, in the dtype of qkv or fp32;
    the first R elements of a head turn. None for a layer without rotary embedding."""
    sin: Tensor | None
    """As cos."""
    keys: Tensor
    """[B, Hkv, S, Dh] in the dtype of qkv, contiguous in Dh; written in place."""
    values: Tensor
    """As keys."""
    slots: Tensor
    """[B, m] int64, where the tokens of a row go; read on the device, distinct within a row, each from 0 to
    S - 1."""
    heads: int
    """H"""
    query_norm: Tensor | None = None
    """[Dh], the weight of an RMSNorm of every head in front of the rotation (Qwen3), in the dtype of qkv."""
    key_norm: Tensor | None = None
    """As query_norm: both or neither."""
    eps: float = 1e-6
    """Of these norms."""

    def __post_init__(self) -> None:
        qkv, keys, heads = self.qkv, self.keys, self.heads
        if qkv.dim() != 3 or keys.dim() != 4 or qkv.dtype not in DTYPES:
            raise KernelInputError(
                "qkv and keys must be [B, m, (H + 2 Hkv) Dh] and [B, Hkv, S, Dh] in bf16, fp16 or fp32, "
                f"not {qkv.dtype} {list(qkv.shape)} and {list(keys.shape)}"
            )
        check_together({name: field for name, field in vars(self).items() if isinstance(field, Tensor)})
        rows, width, _ = qkv.shape
        kv_heads, capacity, size = keys.shape[1:]
        if heads < 1 or not kv_heads or heads % kv_heads:
            raise KernelInputError(f"{heads} query heads do not divide among {kv_heads} key heads")
        if not 1 <= size <= LARGEST_HEAD:
            raise KernelInputError(f"heads of {size}: allowed are 1 to {LARGEST_HEAD}")
        if capacity < width:
            raise KernelInputError(f"{capacity} slots do not hold {width} tokens")
        check("qkv", qkv, (rows, width, (heads + 2 * kv_heads) * size), qkv.dtype, layout="rows")
        for name, cache in (("keys", keys), ("values", self.values)):
            check(name, cache, (rows, kv_heads, capacity, size), qkv.dtype, layout="rows")
        check("slots", self.slots, (rows, width), torch.int64, layout="rows")
        check("query_norm", self.query_norm, (size,), qkv.dtype)
        check("key_norm", self.key_norm, (size,), qkv.dtype)
        if (self.query_norm is None) != (self.key_norm is None):
            raise KernelInputError("query_norm and key_norm go together: give both or neither")
        _check_rotation(self.cos, self.sin, qkv, size)


def reference_rope_store(new: Projections) -> Tensor:
    """`rope_store` in plain PyTorch."""
    kv_heads, size = new.keys.shape[1], new.keys.shape[3]
    each = new.qkv.unflatten(2, (new.heads + 2 * kv_heads, size))
    query, key, value = each.split([new.heads, kv_heads, kv_heads], dim=2)
    query = rotated(head_norm(query, new.query_norm, new.eps), new.cos, new.sin)
    row = torch.arange(len(query), device=query.device)[:, None]
    new.keys[row, :, new.slots] = rotated(head_norm(key, new.key_norm, new.eps), new.cos, new.sin)
    new.values[row, :, new.slots] = value
    return query.transpose(1, 2).contiguous()


def head_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm of heads x [..., Dh], rounded before and after the weight as in Hugging Face's modules."""
    if weight is None:
        return x
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotated(x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Heads x [B, m, h, Dh] with their first R elements turned; R are those of cos and sin [B, m, R]."""
    if cos is None or sin is None:
        return x
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turning.chunk(2, dim=-1)
    # Not one expression: torch rounds each product and the sum to the dtype of cos, and so must the kernel.
    turned = turning * cos[:, :, None] + torch.cat([-second, first], dim=-1) * sin[:, :, None]
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


def _check_rotation(cos: Tensor | None, sin: Tensor | None, qkv: Tensor, size: int) -> None:
    if (cos is None) != (sin is None):
        raise KernelInputError("cos and sin go together: give both or neither")
    if cos is None or sin is None:
        return
    turning = cos.shape[-1] if cos.dim() else 0
    if turning % 2 or not 2 <= turning <= size:
        raise KernelInputError(f"{turning} elements of a head turn: allowed are even numbers up to {size}")
    check("cos", cos, (*qkv.shape[:2], turning), qkv.dtype, torch.float32, layout="rows")
    check("sin", sin, (*qkv.shape[:2], turning), cos.dtype, layout="rows")

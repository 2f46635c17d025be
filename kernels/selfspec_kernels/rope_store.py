"""What stands between a layer's first product and its attention: head norms, rotary embedding, cache write.

One launch takes the projections of the new tokens side by side, turns queries and keys, writes keys and
values to the slots of the cache, and returns the queries as `verify_attention` takes them. The roundings are
those of Hugging Face's modules, so that a layer made of these launches says what the model's own says.
"""

import torch
from torch import Tensor

from selfspec_kernels.backend import Backend, KernelInputError, check, check_together, choose_backend

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST_HEAD = 512
"""Dh: a head is held in the registers of one warp."""


def rope_store(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    *,
    heads: int,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 1e-6,
    backend: Backend | None = None,
) -> Tensor:
    """Queries [B, H, m, Dh], turned and contiguous; keys and values of the new tokens go to the cache.

    Args:
        qkv: [B, m, (H + 2 Hkv) Dh], bf16, fp16 or fp32, contiguous in the last dimension: query heads, key
            heads, value heads.
        cos, sin: [B, m, R] as Hugging Face's rotary modules return them, both halves alike, in the dtype of
            qkv or fp32; the first R elements of a head turn. None for a layer without rotary embedding.
        keys, values: [B, Hkv, S, Dh] in the dtype of qkv, contiguous in Dh; written in place.
        slots: [B, m] int64, where the tokens of a row go; read on the device, distinct within a row, each
            from 0 to S - 1.
        heads: H.
        query_norm, key_norm: [Dh] weights of an RMSNorm of every head in front of the rotation (Qwen3), in
            the dtype of qkv; both or neither.
        eps: of these norms.
        backend: "triton" or "reference"; by default Triton on CUDA, the reference elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, a head that is too
            large, or a backend that is unknown or cannot run there.
    """
    _check(qkv, cos, sin, keys, values, slots, heads, query_norm, key_norm)
    arguments = (qkv, cos, sin, keys, values, slots, heads, query_norm, key_norm, eps)
    if choose_backend(backend, "qkv", qkv) == "reference":
        return reference_rope_store(*arguments)
    from selfspec_kernels import rope_store_launch

    return rope_store_launch.store(*arguments)


def reference_rope_store(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """The same in plain PyTorch."""
    kv_heads, size = keys.shape[1], keys.shape[3]
    each = qkv.unflatten(2, (heads + 2 * kv_heads, size))
    query, key, value = each.split([heads, kv_heads, kv_heads], dim=2)
    query = rotated(head_norm(query, query_norm, eps), cos, sin)
    row = torch.arange(len(qkv), device=qkv.device)[:, None]
    keys[row, :, slots] = rotated(head_norm(key, key_norm, eps), cos, sin)
    values[row, :, slots] = value
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


def _check(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
) -> None:
    if qkv.dim() != 3 or keys.dim() != 4 or qkv.dtype not in DTYPES:
        raise KernelInputError(
            "qkv and keys must be [B, m, (H + 2 Hkv) Dh] and [B, Hkv, S, Dh] in bf16, fp16 or fp32, "
            f"not {qkv.dtype} {list(qkv.shape)} and {list(keys.shape)}"
        )
    tensors = {"qkv": qkv, "cos": cos, "sin": sin, "keys": keys, "values": values, "slots": slots}
    check_together(tensors | {"query_norm": query_norm, "key_norm": key_norm})
    rows, width, _ = qkv.shape
    kv_heads, capacity, size = keys.shape[1:]
    if heads < 1 or not kv_heads or heads % kv_heads:
        raise KernelInputError(f"{heads} query heads do not divide among {kv_heads} key heads")
    if not 1 <= size <= LARGEST_HEAD:
        raise KernelInputError(f"heads of {size}: allowed are 1 to {LARGEST_HEAD}")
    if capacity < width:
        raise KernelInputError(f"{capacity} slots do not hold {width} tokens")
    check("qkv", qkv, (rows, width, (heads + 2 * kv_heads) * size), qkv.dtype, layout="rows")
    for name, tensor in (("keys", keys), ("values", values)):
        check(name, tensor, (rows, kv_heads, capacity, size), qkv.dtype, layout="rows")
    check("slots", slots, (rows, width), torch.int64, layout="rows")
    check("query_norm", query_norm, (size,), qkv.dtype)
    check("key_norm", key_norm, (size,), qkv.dtype)
    if (query_norm is None) != (key_norm is None):
        raise KernelInputError("query_norm and key_norm go together: give both or neither")
    _check_rotation(cos, sin, qkv, size)


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

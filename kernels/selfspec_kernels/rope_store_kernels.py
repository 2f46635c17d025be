"""The Triton kernel behind `rope_store`: import this only where triton is installed.

A program is one head of one token in one warp: what a head needs is loaded at once, its rotation partners
from the cache line that was just fetched, so that a launch is one memory latency long.
"""

import triton
import triton.language as tl

from selfspec_kernels.overlap_kernels import allow_next, await_previous


@triton.jit
def _normed(x, scale, weight_ptr, at, inside):
    """Elements `at` of a head times its norm, in fp32 with the roundings of the weight's dtype."""
    dtype = weight_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return ((x * scale).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)


@triton.jit
def _turned(
    x_ptr, cos_ptr, sin_ptr, weight_ptr, d, inside, eps,
    SIZE: tl.constexpr, TURNING: tl.constexpr,
):  # fmt: skip
    """A head [SIZE] in fp32, normed and with its first TURNING elements turned; cos_ptr None for no turn."""
    x = tl.load(x_ptr + d, mask=inside, other=0.0).to(tl.float32)
    HALF: tl.constexpr = TURNING // 2
    turns = d < TURNING
    other = tl.where(d < HALF, d + HALF, d - HALF)
    if cos_ptr is not None:
        cos = tl.load(cos_ptr + d, mask=turns, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + d, mask=turns, other=0.0).to(tl.float32)
        partner = tl.load(x_ptr + other, mask=turns, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
        x = _normed(x, scale, weight_ptr, d, inside)
        if cos_ptr is not None:
            partner = _normed(partner, scale, weight_ptr, other, turns)
    if cos_ptr is not None:
        partner = tl.where(d < HALF, -partner, partner)
        # Each product is rounded to the dtype of cos and sin, as torch does; in fp32 that is nothing.
        dtype = cos_ptr.dtype.element_ty
        turned = (x * cos).to(dtype).to(tl.float32) + (partner * sin).to(dtype).to(tl.float32)
        x = tl.where(turns, turned, x)
    return x


@triton.jit(do_not_specialize=["width", "slots_row"], do_not_specialize_on_alignment=["slots_ptr"])
def rope_store_kernel(
    qkv_ptr, cos_ptr, sin_ptr, query_norm_ptr, key_norm_ptr, slots_ptr, query_ptr, keys_ptr, values_ptr,
    width, heads, kv_heads, eps,
    qkv_row, qkv_token, cos_row, cos_token, sin_row, sin_token, slots_row,
    keys_row, keys_head, keys_slot, values_row, values_head, values_slot,
    SIZE: tl.constexpr, TURNING: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Token program_id(0) of all rows, head program_id(1) of queries, keys and values.

    query_ptr: [B, heads, width, SIZE] contiguous. TURNING is R, 0 without rotary embedding.
    """
    allow_next(PDL)
    b = tl.program_id(0).to(tl.int64) // width
    t = tl.program_id(0).to(tl.int64) % width
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK)
    inside = d < SIZE
    x_ptr = qkv_ptr + b * qkv_row + t * qkv_token + head * SIZE
    if cos_ptr is not None:
        cos_ptr += b * cos_row + t * cos_token
        sin_ptr += b * sin_row + t * sin_token
    await_previous(PDL)
    if head < heads:
        x = _turned(x_ptr, cos_ptr, sin_ptr, query_norm_ptr, d, inside, eps, SIZE, TURNING)
        at = ((b * heads + head) * width + t) * SIZE
        tl.store(query_ptr + at + d, x.to(query_ptr.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots_ptr + b * slots_row + t)
        own = head - heads
        if own < kv_heads:
            x = _turned(x_ptr, cos_ptr, sin_ptr, key_norm_ptr, d, inside, eps, SIZE, TURNING)
            at = b * keys_row + own.to(tl.int64) * keys_head + slot * keys_slot
            tl.store(keys_ptr + at + d, x.to(keys_ptr.dtype.element_ty), mask=inside)
        else:
            own -= kv_heads
            at = b * values_row + own.to(tl.int64) * values_head + slot * values_slot
            tl.store(values_ptr + at + d, tl.load(x_ptr + d, mask=inside), mask=inside)

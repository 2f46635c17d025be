"""The Triton kernel behind `row_norm`: import this only where triton is installed.

A program is a row. What the row is multiplied with is loaded beside it, so that a launch is one memory
latency long.
"""

import triton
import triton.language as tl

from selfspec_kernels.overlap_kernels import allow_next, await_previous, request


@triton.jit(do_not_specialize=["width"])
def norm_kernel(
    hidden_ptr, down_ptr, up_ptr, weight_ptr, bias_ptr, out_ptr,
    width, D, rank, row_stride, column_stride, eps,
    KIND: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [B * width, D] = norm(hidden + (hidden down^T) up), row program_id(0); KIND None for no norm."""
    allow_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    dtype = out_ptr.dtype.element_ty
    if KIND is not None:
        line = tl.arange(0, 1 if BLOCK_D < 64 else BLOCK_D // 64) * 64
        request(weight_ptr + tl.minimum(line, D - 1), 128, PDL)
    await_previous(PDL)
    hidden_ptr += row // width * row_stride + row % width * column_stride
    x = tl.load(hidden_ptr + d, mask=inside, other=0.0).to(tl.float32)
    if down_ptr is not None:
        added = tl.zeros((BLOCK_D,), tl.float32)
        for first in range(0, rank, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            at = r.to(tl.int64)[:, None] * D + d[None, :]
            both = (r < rank)[:, None] & inside[None, :]
            down = tl.load(down_ptr + at, mask=both, other=0.0).to(tl.float32)
            up = tl.load(up_ptr + at, mask=both, other=0.0).to(tl.float32)
            part = tl.sum(down * x[None, :], axis=1)
            added += tl.sum(up * part[:, None], axis=0)
        x = (x + added).to(dtype).to(tl.float32)
    if KIND is not None:
        weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
        if KIND == "layer":
            x = tl.where(inside, x - tl.sum(x, axis=0) / D, 0.0)
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
        if KIND == "rms":
            x = x.to(dtype).to(tl.float32) * weight
        elif KIND == "rms_one":
            x = x * (1.0 + weight)
        else:
            x = x * weight
            if bias_ptr is not None:
                x += tl.load(bias_ptr + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * D + d, x.to(dtype), mask=inside)

"""The Triton kernels behind `low_bit_products` and `low_bit_gated`: only where triton is installed.

Both are `dot_total` over outputs of several matrices: every output brings its own pointers, so a program's
outputs may lie in two of them, and gate and up of one output are computed by one program. What a product ends
with is loaded before the loop, where its latency hides behind that of the weights.
"""

import triton
import triton.language as tl

from selfspec_kernels.low_bit_dot_kernels import dot_total


@triton.jit
def _third(n, N1, N2, first, second, third):
    """Of the three matrices' own, what belongs to outputs n of all of them side by side."""
    return tl.where(n < N1, first, tl.where(n < N1 + N2, second, third))


@triton.jit
def _with_bias(total, bias_ptr, n, N):
    """total [BLOCK_N] + bias where n falls into its N outputs."""
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, mask=(n >= 0) & (n < N), other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["m"])
def products_kernel(
    x_ptr, packed_1_ptr, packed_2_ptr, packed_3_ptr, pairs_1_ptr, pairs_2_ptr, pairs_3_ptr,
    bias_1_ptr, bias_2_ptr, bias_3_ptr, residual_ptr, out_ptr, m, N1, N2, N3, K, row_bytes, multiplier,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SLICES: tl.constexpr, STAGES: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Outputs program_id(0) of N1 + N2 + N3, rows program_id(1).

    pairs: scale and offset as one int32. Where there are fewer matrices, N is 0 and the pointers are those of
    another. multiplier is None for 1.
    """
    N = N1 + N2 + N3
    dtype = out_ptr.dtype.element_ty
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (r < m)[:, None] & (n < N)[None, :]
    at = r[:, None] * N + n[None, :]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    bias = _with_bias(tl.zeros((BLOCK_N,), tl.float32), bias_1_ptr, n, N1)
    bias = _with_bias(bias, bias_2_ptr, n - N1, N2)
    bias = _with_bias(bias, bias_3_ptr, n - N1 - N2, N3)
    n_in = tl.minimum(n, N - 1)
    apart = _third(n_in, N1, N2, N1, N2, N3)
    own = n_in - _third(n_in, N1, N2, 0, N1, N1 + N2)
    packed_ptrs = _third(n_in, N1, N2, packed_1_ptr, packed_2_ptr, packed_3_ptr)
    pairs_ptrs = _third(n_in, N1, N2, pairs_1_ptr, pairs_2_ptr, pairs_3_ptr)
    total = dot_total(
        x_ptr, packed_ptrs + own.to(tl.int64) * row_bytes, pairs_ptrs + own, apart[None, :], r, m, K,
        row_bytes, tl.cdiv(row_bytes // CHUNK, SLICES), 0,
        GROUP, CHUNK, BLOCK_N, BLOCK_M, SLICES, STAGES, BASE, PLAIN,
    )  # fmt: skip
    out = tl.trans(tl.sum(total, axis=0)) + bias[None, :]
    if multiplier is not None:
        out = out.to(dtype).to(tl.float32) * multiplier
    if residual_ptr is not None:
        out = out.to(dtype).to(tl.float32) + residual
    tl.store(out_ptr + at, out.to(dtype), mask=inside)


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh u) is 1 / (1 + exp(-2 u)).
        return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["m"])
def gated_kernel(
    x_ptr, gate_ptr, up_ptr, gate_pairs_ptr, up_pairs_ptr, gate_bias_ptr, up_bias_ptr, out_ptr,
    m, N, K, row_bytes,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SLICES: tl.constexpr, STAGES: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Outputs program_id(0), rows program_id(1). BLOCK_N counts gate and up: a program has half as many."""
    HALF: tl.constexpr = BLOCK_N // 2
    dtype = out_ptr.dtype.element_ty
    both = tl.arange(0, BLOCK_N)
    own = tl.minimum(tl.program_id(0) * HALF + both % HALF, N - 1)
    r = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * HALF + tl.arange(0, HALF)
    gate_bias = _with_bias(tl.zeros((HALF,), tl.float32), gate_bias_ptr, n, N)
    up_bias = _with_bias(tl.zeros((HALF,), tl.float32), up_bias_ptr, n, N)
    packed_ptrs = tl.where(both < HALF, gate_ptr, up_ptr) + own.to(tl.int64) * row_bytes
    pairs_ptrs = tl.where(both < HALF, gate_pairs_ptr, up_pairs_ptr) + own
    total = dot_total(
        x_ptr, packed_ptrs, pairs_ptrs, N, r, m, K, row_bytes, tl.cdiv(row_bytes // CHUNK, SLICES), 0,
        GROUP, CHUNK, BLOCK_N, BLOCK_M, SLICES, STAGES, BASE, PLAIN,
    )  # fmt: skip
    halves = tl.reshape(tl.sum(total, axis=0), (2, HALF, BLOCK_M))
    gate, up = tl.split(tl.permute(halves, (2, 1, 0)))
    gate = (gate + gate_bias[None, :]).to(dtype).to(tl.float32)
    up = (up + up_bias[None, :]).to(dtype).to(tl.float32)
    out = _activated(gate, ACTIVATION).to(dtype).to(tl.float32) * up
    inside = (r < m)[:, None] & (n < N)[None, :]
    tl.store(out_ptr + r[:, None] * N + n[None, :], out.to(dtype), mask=inside)

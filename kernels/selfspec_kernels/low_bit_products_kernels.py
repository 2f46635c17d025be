"""The Triton kernels behind `low_bit_products` and `low_bit_gated`: only where triton is installed.

Both are `dot_total` over outputs of several matrices: every row of tiles brings its own pointers, and gate
and up of one output are computed by one program.
"""

import triton
import triton.language as tl

from selfspec_kernels.low_bit_dot_kernels import dot_total, first_tiles, outputs_of_pairs, rows_of_words
from selfspec_kernels.overlap_kernels import allow_next, await_previous


@triton.jit
def _third(t, T1, T2, first, second, third):
    """Of the three matrices' own, what belongs to row t of all their tiles."""
    return tl.where(t < T1, first, tl.where(t < T1 + T2, second, third))


@triton.jit
def _with_bias(total, bias_ptr, n, N):
    """total [outputs] + bias where n falls into its N outputs."""
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, mask=(n >= 0) & (n < N), other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["m"])
def products_kernel(
    x_ptr, packed_1_ptr, packed_2_ptr, packed_3_ptr, pairs_1_ptr, pairs_2_ptr, pairs_3_ptr,
    bias_1_ptr, bias_2_ptr, bias_3_ptr, residual_ptr, out_ptr, m, N1, N2, N3, K, multiplier,
    GROUP: tl.constexpr, TILES: tl.constexpr, BLOCK_M: tl.constexpr, SLICES: tl.constexpr,
    AHEAD: tl.constexpr, EVEN: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """TILES rows of tiles from program_id(0), of all of the matrices, and rows of x from program_id(1).

    packed: levels as int32. pairs: scale and offset as one int32. Where there are fewer matrices, N is 0 and
    the pointers are those of another. multiplier is None for 1.
    """
    allow_next(PDL)
    N = N1 + N2 + N3
    T1 = tl.cdiv(N1, 16)
    T2 = tl.cdiv(N2, 16)
    dtype = out_ptr.dtype.element_ty
    first = tl.program_id(0) * TILES
    last = T1 + T2 + tl.cdiv(N3, 16) - 1
    t = tl.minimum(first + rows_of_words(TILES, SLICES), last)
    own = (t - _third(t, T1, T2, 0, T1, T1 + T2)).to(tl.int64)
    word_ptrs = _third(t, T1, T2, packed_1_ptr, packed_2_ptr, packed_3_ptr) + own * (tl.cdiv(K, 64) * 128)
    output = outputs_of_pairs(TILES, SLICES)
    t = tl.minimum(first + output // 16, last)
    own = (t - _third(t, T1, T2, 0, T1, T1 + T2)) * 16 + output % 16
    apart = _third(t, T1, T2, N1, N2, N3)
    pair_ptrs = _third(t, T1, T2, pairs_1_ptr, pairs_2_ptr, pairs_3_ptr) + tl.minimum(own, apart - 1)
    started = first_tiles(word_ptrs, pair_ptrs, apart, K, GROUP, TILES, SLICES, AHEAD, EVEN)
    output = tl.arange(0, TILES * 16)
    t = first + output // 16
    own = (t - _third(t, T1, T2, 0, T1, T1 + T2)) * 16 + output % 16
    own_in = own < _third(t, T1, T2, N1, N2, N3)
    n = own + _third(t, T1, T2, 0, N1, N1 + N2)
    bias = _with_bias(tl.zeros((TILES * 16,), tl.float32), bias_1_ptr, tl.where(own_in, n, N), N1)
    bias = _with_bias(bias, bias_2_ptr, tl.where(own_in, n, N) - N1, N2)
    bias = _with_bias(bias, bias_3_ptr, tl.where(own_in, n, N) - N1 - N2, N3)
    first_row = tl.program_id(1).to(tl.int64) * BLOCK_M
    r = first_row + tl.arange(0, BLOCK_M)
    inside = (r < m)[:, None] & own_in[None, :]
    at = r[:, None] * N + n[None, :]
    await_previous(PDL)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    total = dot_total(
        started, x_ptr, apart, first_row, m, K, GROUP, TILES, BLOCK_M, SLICES, AHEAD, EVEN, BASE, PLAIN
    )
    out = tl.trans(total) + bias[None, :]
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
    x_ptr, gate_ptr, up_ptr, gate_pairs_ptr, up_pairs_ptr, gate_bias_ptr, up_bias_ptr, out_ptr, m, N, K,
    GROUP: tl.constexpr, TILES: tl.constexpr, BLOCK_M: tl.constexpr, SLICES: tl.constexpr,
    AHEAD: tl.constexpr, EVEN: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr, PDL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """As `products_kernel`. TILES counts gate and up, from 2: a program has half as many rows of each."""
    allow_next(PDL)
    HALF: tl.constexpr = TILES // 2
    dtype = out_ptr.dtype.element_ty
    first = tl.program_id(0) * HALF
    row = rows_of_words(TILES, SLICES)
    own = tl.minimum(first + row % HALF, tl.cdiv(N, 16) - 1).to(tl.int64)
    word_ptrs = tl.where(row < HALF, gate_ptr, up_ptr) + own * (tl.cdiv(K, 64) * 128)
    output = outputs_of_pairs(TILES, SLICES)
    own = tl.minimum(first * 16 + output % (HALF * 16), N - 1)
    pair_ptrs = tl.where(output < HALF * 16, gate_pairs_ptr, up_pairs_ptr) + own
    started = first_tiles(word_ptrs, pair_ptrs, N, K, GROUP, TILES, SLICES, AHEAD, EVEN)
    n = first * 16 + tl.arange(0, HALF * 16)
    gate_bias = _with_bias(tl.zeros((HALF * 16,), tl.float32), gate_bias_ptr, n, N)
    up_bias = _with_bias(tl.zeros((HALF * 16,), tl.float32), up_bias_ptr, n, N)
    first_row = tl.program_id(1).to(tl.int64) * BLOCK_M
    await_previous(PDL)
    total = dot_total(
        started, x_ptr, N, first_row, m, K, GROUP, TILES, BLOCK_M, SLICES, AHEAD, EVEN, BASE, PLAIN
    )
    halves = tl.reshape(total, (2, HALF * 16, BLOCK_M))
    gate, up = tl.split(tl.permute(halves, (2, 1, 0)))
    gate = (gate + gate_bias[None, :]).to(dtype).to(tl.float32)
    up = (up + up_bias[None, :]).to(dtype).to(tl.float32)
    out = _activated(gate, ACTIVATION).to(dtype).to(tl.float32) * up
    r = first_row + tl.arange(0, BLOCK_M)
    inside = (r < m)[:, None] & (n < N)[None, :]
    tl.store(out_ptr + r[:, None] * N + n[None, :], out.to(dtype), mask=inside)

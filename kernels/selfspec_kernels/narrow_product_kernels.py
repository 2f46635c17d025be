"""The Triton kernels behind `narrow_product`: import this only where triton is installed.

A program streams BLOCK_N rows of a weight matrix over all of K, so a result is finished where it is summed:
no second launch, nothing atomic, and the order of a row's sum depends on neither the number of rows nor the
rows beside it. Two ways to sum a step of BLOCK_K inputs:

- SLICES 1: all warps take one product [BLOCK_N, BLOCK_K] x [BLOCK_K, ROWS]; on sm_90, from 64 outputs, the
  tensor cores read both straight from shared memory.
- SLICES > 1: each warp takes its own slice of the inputs for the same outputs (a batch dimension of
  `tl.dot`), and the slices are added at the end. With few outputs a program this keeps the chain of dependent
  products short, and no two warps read the same piece of shared memory.
"""

import triton
import triton.language as tl

from selfspec_kernels.overlap_kernels import allow_next, await_previous, request


@triton.jit
def _dot(weight, x, total, PLAIN: tl.constexpr):
    if PLAIN:
        weight = weight.to(tl.float32)  # the interpreter's product of bf16 matrices is garbage
        x = x.to(tl.float32)
    return tl.dot(weight, x, total, input_precision="tf32x3")


@triton.jit
def _load(ptrs, k_in, EVEN_K: tl.constexpr):
    if EVEN_K:
        tile = tl.load(ptrs)
    else:
        tile = tl.load(ptrs, mask=k_in, other=0.0)
    return tile


@triton.jit
def _whole_sums(
    x_ptr, weight_ptr, up_ptr, r, rows, n, K, x_stride, weight_stride, up_stride,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    STAGES: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, ROWS] in fp32, of both matrices (the same twice where `up_ptr` is None)."""
    k = tl.arange(0, BLOCK_K)
    row_in = (r < rows)[None, :]
    weight_ptrs = weight_ptr + n[:, None] * weight_stride + k[None, :]
    x_ptrs = x_ptr + r.to(tl.int64)[None, :] * x_stride + k[:, None]
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    second = tl.zeros((BLOCK_N, ROWS), tl.float32)
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k_in = first + k < K
        weight = _load(weight_ptrs + first, k_in[None, :], EVEN_K)
        x_in = row_in if EVEN_K else row_in & k_in[:, None]
        x = tl.load(x_ptrs + first, mask=x_in, other=0.0)  # a row that is not there costs no bytes
        total = _dot(weight, x, total, PLAIN)
        if up_ptr is not None:
            up_ptrs = up_ptr + n[:, None] * up_stride + k[None, :]
            second = _dot(_load(up_ptrs + first, k_in[None, :], EVEN_K), x, second, PLAIN)
    return total, second


@triton.jit
def _sliced_sums(
    x_ptr, weight_ptr, up_ptr, r, rows, n, K, x_stride, weight_stride, up_stride,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
    EVEN_K: tl.constexpr, STAGES: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """The same, each warp with a slice of every step."""
    CHUNK: tl.constexpr = BLOCK_K // SLICES
    k = tl.arange(0, SLICES)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    row_in = (r < rows)[None, None, :]
    weight_ptrs = weight_ptr + n[None, :, None] * weight_stride + k[:, None, :]
    x_ptrs = x_ptr + r.to(tl.int64)[None, None, :] * x_stride + k[:, :, None]
    total = tl.zeros((SLICES, BLOCK_N, ROWS), tl.float32)
    second = tl.zeros((SLICES, BLOCK_N, ROWS), tl.float32)
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k_in = first + k < K
        weight = _load(weight_ptrs + first, k_in[:, None, :], EVEN_K)
        x_in = row_in if EVEN_K else row_in & k_in[:, :, None]
        x = tl.load(x_ptrs + first, mask=x_in, other=0.0)  # a row that is not there costs no bytes
        total = _dot(weight, x, total, PLAIN)
        if up_ptr is not None:
            up_ptrs = up_ptr + n[None, :, None] * up_stride + k[:, None, :]
            second = _dot(_load(up_ptrs + first, k_in[:, None, :], EVEN_K), x, second, PLAIN)
    if up_ptr is not None:
        second_sum = tl.sum(second, axis=0)
    else:
        second_sum = tl.zeros((BLOCK_N, ROWS), tl.float32)
    return tl.sum(total, axis=0), second_sum


@triton.jit
def _sums(
    x_ptr, weight_ptr, up_ptr, r, rows, n, K, x_stride, weight_stride, up_stride,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
    EVEN_K: tl.constexpr, STAGES: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    if SLICES == 1:
        total, second = _whole_sums(
            x_ptr, weight_ptr, up_ptr, r, rows, n, K, x_stride, weight_stride, up_stride, ROWS, BLOCK_N,
            BLOCK_K, EVEN_K, STAGES, PLAIN,
        )  # fmt: skip
    else:
        total, second = _sliced_sums(
            x_ptr, weight_ptr, up_ptr, r, rows, n, K, x_stride, weight_stride, up_stride, ROWS, BLOCK_N,
            BLOCK_K, SLICES, EVEN_K, STAGES, PLAIN,
        )  # fmt: skip
    return total, second


@triton.jit
def _add_bias(total, bias_ptr, n, N):
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    x_ptr, weight0_ptr, weight1_ptr, weight2_ptr, bias0_ptr, bias1_ptr, bias2_ptr, residual_ptr, out_ptr,
    rows, K, N0, N1, N2, x_stride, stride0, stride1, stride2, residual_stride, out_stride, multiplier,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
    EVEN_K: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, PLAIN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [rows, N0 + N1 + N2] = x [rows, K] times up to three matrices, + bias, + residual.

    Rows program_id(0), so that the programs that share weights run together; blocks of outputs, matrix after
    matrix, program_id(1). A matrix that is None has N 0. AHEAD: bytes of each weight row that are asked for
    while the kernel before this one still runs.
    """
    allow_next(PDL)
    block = tl.program_id(1)
    blocks0 = tl.cdiv(N0, BLOCK_N)
    blocks1 = tl.cdiv(N1, BLOCK_N)
    # A size of 1 is a constant to the compiler, and a variable has one type in all branches: hence the casts.
    weight_ptr = weight0_ptr
    stride = tl.cast(stride0, tl.int64)
    N = tl.cast(N0, tl.int32)
    start = tl.cast(0, tl.int32)
    first = tl.cast(0, tl.int32)
    if weight1_ptr is not None:  # noqa: SIM102 (decided by the compiler)
        if block >= blocks0:
            weight_ptr = weight1_ptr
            stride = tl.cast(stride1, tl.int64)
            N = tl.cast(N1, tl.int32)
            start = tl.cast(N0, tl.int32)
            first = tl.cast(blocks0, tl.int32)
    if weight2_ptr is not None:  # noqa: SIM102 (decided by the compiler)
        if block >= blocks0 + blocks1:
            weight_ptr = weight2_ptr
            stride = tl.cast(stride2, tl.int64)
            N = tl.cast(N2, tl.int32)
            start = tl.cast(N0 + N1, tl.int32)
            first = tl.cast(blocks0 + blocks1, tl.int32)
    n = (block - first) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # Past the last output its own weights are read again: loads need no mask.
    n_in = tl.minimum(n, N - 1).to(tl.int64)
    request(weight_ptr + n_in * stride, AHEAD, PDL)
    await_previous(PDL)
    total, _ = _sums(
        x_ptr, weight_ptr, None, r, rows, n_in, K, x_stride, stride, 0, ROWS, BLOCK_N, BLOCK_K, SLICES,
        EVEN_K, STAGES, PLAIN,
    )  # fmt: skip
    if block < blocks0:
        total = _add_bias(total, bias0_ptr, n, N)
    elif block < blocks0 + blocks1:
        total = _add_bias(total, bias1_ptr, n, N)
    else:
        total = _add_bias(total, bias2_ptr, n, N)
    dtype = out_ptr.dtype.element_ty
    out = total.to(dtype)
    inside = (n < N)[:, None] & (r < rows)[None, :]
    r_at = r.to(tl.int64)[None, :]
    if residual_ptr is not None:
        scaled = (out.to(tl.float32) * multiplier).to(dtype).to(tl.float32)
        residual = tl.load(
            residual_ptr + r_at * residual_stride + (start + n)[:, None], mask=inside, other=0.0
        )
        out = (residual.to(tl.float32) + scaled).to(dtype)
    tl.store(out_ptr + r_at * out_stride + (start + n)[:, None], out, mask=inside)


@triton.jit
def _activated(x, KIND: tl.constexpr):
    """x in fp32; PyTorch's formulas."""
    if KIND == "silu":
        y = tl.div_rn(x, 1.0 + tl.exp(-x))
    elif KIND == "gelu_tanh":
        # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u)), without its cancellation
        y = tl.div_rn(x, 1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return y


@triton.jit(do_not_specialize=["rows"])
def gated_kernel(
    x_ptr, gate_ptr, up_ptr, out_ptr, rows, K, N, x_stride, gate_stride, up_stride, out_stride,
    KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr, EVEN_K: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr,
    PLAIN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [rows, N] = act(x gate^T) * (x up^T); rows program_id(0), outputs program_id(1)."""
    allow_next(PDL)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n_in = tl.minimum(n, N - 1).to(tl.int64)
    request(gate_ptr + n_in * gate_stride, AHEAD, PDL)
    request(up_ptr + n_in * up_stride, AHEAD, PDL)
    await_previous(PDL)
    gate, up = _sums(
        x_ptr, gate_ptr, up_ptr, r, rows, n_in, K, x_stride, gate_stride, up_stride, ROWS, BLOCK_N, BLOCK_K,
        SLICES, EVEN_K, STAGES, PLAIN,
    )  # fmt: skip
    dtype = out_ptr.dtype.element_ty
    # Rounded wherever a module of the model would hand over its result.
    acted = _activated(gate.to(dtype).to(tl.float32), KIND).to(dtype).to(tl.float32)
    out = (acted * up.to(dtype).to(tl.float32)).to(dtype)
    inside = (n < N)[:, None] & (r < rows)[None, :]
    tl.store(out_ptr + r.to(tl.int64)[None, :] * out_stride + n[:, None], out, mask=inside)

"""The Triton kernels behind `low_bit_product`: import this only where triton is installed.

Two kernels read the same storage:

- `dot_kernel`, for 16-bit x. Each warp takes its own slice of the inputs for the same 32 outputs (a batch
  dimension of `tl.dot`), so that 4,096 outputs already give 1,024 warps. A nibble becomes a float by or-ing
  it into the mantissa of a power of two B: the product is with B + q, and B + 8 goes off again with the
  offset, as (offset - (B + 8) scale) * sum(x). The sum of x comes from the same tensor-core instruction with
  ones for weights, which lands where it is needed. Counted in machine code for sm_90, instructions a weight:
  up to 8 rows 3.8 (groups of 32) or 3.0 (64 and 128), up to 16 rows 5.1 or 4.1; an H200 can issue between 4
  and 5 in the time that it reads a weight.
- `sum_kernel`, multiply and add, for fp32 x, where tensor cores would round. Even for one row of 16-bit x it
  issues twice as many instructions as `dot_kernel`, so it is not chosen there.

Few outputs leave multiprocessors idle: then the inputs are split over programs too, their sums are stored in
fp32 and `add_kernel` adds them in a fixed order. Nothing is atomic: equal inputs give equal bits.
"""

import triton
import triton.language as tl

from selfspec_kernels.low_bit_dot_kernels import dot_total


@triton.jit
def _store(out_ptr, bias_ptr, total, n, r, m, N):
    """total [rows, outputs] to this split's part of out [splits, m, N]."""
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    at = (tl.program_id(1).to(tl.int64) * m + r)[:, None] * N + n[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=(r < m)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["m"])
def dot_kernel(
    x_ptr, packed_ptr, pairs_ptr, bias_ptr, out_ptr, m, N, K, row_bytes,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SLICES: tl.constexpr, STAGES: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Outputs program_id(0), split program_id(1), rows program_id(2).

    pairs_ptr: scale and offset as one int32. SLICES must equal the number of warps, see `dot_total`.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_in = tl.minimum(n, N - 1)
    r = tl.program_id(2).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    steps = tl.cdiv(row_bytes // CHUNK, SLICES * tl.num_programs(1))
    total = dot_total(
        x_ptr, packed_ptr + n_in.to(tl.int64) * row_bytes, pairs_ptr + n_in, N, r, m, K, row_bytes,
        steps, tl.program_id(1) * steps * SLICES, GROUP, CHUNK, BLOCK_N, BLOCK_M, SLICES, STAGES, BASE, PLAIN,
    )  # fmt: skip
    _store(out_ptr, bias_ptr, tl.trans(tl.sum(total, axis=0)), n, r, m, N)


@triton.jit
def _add_product(total, level_bits, x, scales_ptrs, inside, BASE: tl.constexpr):
    scale = tl.load(scales_ptrs, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(scales_ptrs + 1, mask=inside, other=0.0).to(tl.float32)
    offset = tl.fma(scale, -(BASE + 8.0), offset)
    # A nibble at bit 16 of a float that starts at 128 counts in ones.
    level = ((level_bits & 0xF0000) | 0x43000000).to(tl.float32, bitcast=True)
    weight = tl.fma(scale[:, :, None], level, offset[:, :, None])
    return tl.fma(x.to(tl.float32)[:, None, :, :], weight[None, :, :, :], total)


@triton.jit(do_not_specialize=["m"])
def sum_kernel(
    x_ptr, packed_ptr, scales_ptr, bias_ptr, out_ptr, m, N, K, row_bytes,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SLICES: tl.constexpr, STAGES: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """As `dot_kernel`, with scales_ptr in x's dtype and any number of warps; PLAIN has no meaning here."""
    CHUNKS: tl.constexpr = GROUP // CHUNK
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_in = tl.minimum(n, N - 1)
    r = tl.program_id(2).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, CHUNK)
    groups = K // GROUP
    chunks = row_bytes // CHUNK
    steps = tl.cdiv(chunks, SLICES * tl.num_programs(1))
    chunk = tl.program_id(1) * steps * SLICES + tl.arange(0, SLICES)
    packed_ptrs = packed_ptr + n_in.to(tl.int64)[:, None, None] * row_bytes + j[None, None, :]
    x_ptrs = x_ptr + r[:, None, None] * K + j[None, None, :]
    row_in = (r < m)[:, None, None]
    total = tl.zeros((BLOCK_M, BLOCK_N, SLICES, CHUNK), tl.float32)
    for _ in tl.range(0, steps, num_stages=STAGES):
        group = chunk // CHUNKS * 2
        even_in = group < groups
        odd_in = group + 1 < groups
        column = group * GROUP + chunk % CHUNKS * CHUNK
        bytes = tl.load(
            packed_ptrs + chunk[None, :, None] * CHUNK, mask=(chunk < chunks)[None, :, None], other=0
        ).to(tl.int32)
        x_even = tl.load(x_ptrs + column[None, :, None], mask=row_in & even_in[None, :, None], other=0.0)
        x_odd = tl.load(
            x_ptrs + column[None, :, None] + GROUP, mask=row_in & odd_in[None, :, None], other=0.0
        )
        scales_ptrs = scales_ptr + (group[None, :].to(tl.int64) * N + n_in[:, None]) * 2
        total = _add_product(total, bytes << 16, x_even, scales_ptrs, even_in[None, :], BASE)
        total = _add_product(total, bytes << 12, x_odd, scales_ptrs + 2 * N, odd_in[None, :], BASE)
        chunk += SLICES
    _store(out_ptr, bias_ptr, tl.sum(tl.sum(total, axis=3), axis=2), n, r, m, N)


@triton.jit
def add_kernel(parts_ptr, bias_ptr, out_ptr, N, size, splits, BLOCK: tl.constexpr):
    """out [size] = sum of parts [splits, size], in order, + bias [N]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    part_ptrs = parts_ptr + at
    for _ in range(splits):
        total += tl.load(part_ptrs, mask=inside, other=0.0)
        part_ptrs += size
    if bias_ptr is not None:
        total += tl.load(bias_ptr + at % N, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)

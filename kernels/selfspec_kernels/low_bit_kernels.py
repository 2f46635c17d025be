"""The Triton kernels behind `low_bit_product` for fp32 x, where tensor cores would round: multiply and add.

Few outputs leave multiprocessors idle: then the inputs are split over programs too, their sums are stored in
fp32 and `add_kernel` adds them in a fixed order. Nothing is atomic: equal inputs give equal bits. Import this
only where triton is installed.
"""

import triton
import triton.language as tl


@triton.jit
def _store(out_ptr, bias_ptr, total, n, r, m, N):
    """total [rows, outputs] to this split's part of out [splits, m, N]."""
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    at = (tl.program_id(1).to(tl.int64) * m + r)[:, None] * N + n[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=(r < m)[:, None] & (n < N)[None, :])


@triton.jit
def _add_product(total, level_bits, x, scales_ptrs, inside):
    scale = tl.load(scales_ptrs, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(scales_ptrs + 1, mask=inside, other=0.0).to(tl.float32)
    offset = tl.fma(scale, -136.0, offset)
    # A nibble at bit 16 of a float that starts at 128 counts in ones; 8 of them are the offset.
    level = ((level_bits & 0xF0000) | 0x43000000).to(tl.float32, bitcast=True)
    weight = tl.fma(scale[:, :, None], level, offset[:, :, None])
    return tl.fma(x.to(tl.float32)[:, None, :, :], weight[None, :, :, :], total)


@triton.jit(do_not_specialize=["m"])
def sum_kernel(
    x_ptr, packed_ptr, scales_ptr, bias_ptr, out_ptr, m, N, K,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SLICES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Outputs program_id(0), split program_id(1), rows program_id(2).

    An output has 32 bytes of a tile of `pack_levels`: levels of its first 32 inputs, and of the others above.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_in = tl.minimum(n, N - 1)
    r = tl.program_id(2).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, 32)
    tiles = tl.cdiv(K, 64)
    steps = tl.cdiv(tiles, SLICES * tl.num_programs(1))
    tile = tl.program_id(1) * steps * SLICES + tl.arange(0, SLICES)
    row = (n_in // 16).to(tl.int64) * (tiles * 512) + n_in % 8 * 64 + n_in % 16 // 8 * 8
    byte = j // 8 * 16 + j % 4 // 2 * 4 + j % 2 * 2 + j % 8 // 4
    packed_ptrs = packed_ptr + row[:, None, None] + byte[None, None, :]
    x_ptrs = x_ptr + r[:, None, None] * K + j[None, None, :]
    row_in = (r < m)[:, None, None]
    total = tl.zeros((BLOCK_M, BLOCK_N, SLICES, 32), tl.float32)
    for _ in tl.range(0, steps, num_stages=STAGES):
        low_in = tile * 64 < K
        high_in = tile * 64 + 32 < K
        tile_ptrs = packed_ptrs + tile[None, :, None] * 512
        levels = tl.load(tile_ptrs, mask=low_in[None, :, None], other=0).to(tl.int32)
        column = tile[None, :, None] * 64
        x_low = tl.load(x_ptrs + column, mask=row_in & low_in[None, :, None], other=0.0)
        x_high = tl.load(x_ptrs + column + 32, mask=row_in & high_in[None, :, None], other=0.0)
        group = (tile * 64 // GROUP)[None, :].to(tl.int64)
        scales_ptrs = scales_ptr + (group * N + n_in[:, None]) * 2
        total = _add_product(total, levels << 16, x_low, scales_ptrs, low_in[None, :])
        if GROUP == 32:
            scales_ptrs += 2 * N
        total = _add_product(total, levels << 12, x_high, scales_ptrs, high_in[None, :])
        tile += SLICES
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

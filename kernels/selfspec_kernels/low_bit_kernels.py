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

# Four bytes in a register: prmt spreads two of them over 16-bit lanes, a mask keeps a nibble of each lane,
# the or makes it B + q. The ones are made here too: x is copied ahead only when both of its products read it
# in one layout, and Triton chooses that by the width in which the other operand was loaded.
BF16_LEVELS = tl.constexpr("""{
.reg .b32 a, b;
prmt.b32 a, $6, 0, 0x4140;
prmt.b32 b, $6, 0, 0x4342;
lop3.b32 $0, a, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 $1, b, 0x000F000F, 0x43004300, 0xEA;
shr.b32 a, a, 4;
shr.b32 b, b, 4;
lop3.b32 $2, a, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 $3, b, 0x000F000F, 0x43004300, 0xEA;
mov.b32 $4, 0x3F803F80;
mov.b32 $5, 0x3F803F80;
}""")
# fp16 has more mantissa: the nibble goes four bits up, which keeps B at 64 and the sums with it small.
FP16_LEVELS = tl.constexpr("""{
.reg .b32 a, b;
prmt.b32 a, $6, 0, 0x4140;
prmt.b32 b, $6, 0, 0x4342;
lop3.b32 $2, a, 0x00F000F0, 0x54005400, 0xEA;
lop3.b32 $3, b, 0x00F000F0, 0x54005400, 0xEA;
shl.b32 a, a, 4;
shl.b32 b, b, 4;
lop3.b32 $0, a, 0x00F000F0, 0x54005400, 0xEA;
lop3.b32 $1, b, 0x00F000F0, 0x54005400, 0xEA;
mov.b32 $4, 0x3C003C00;
mov.b32 $5, 0x3C003C00;
}""")
BF16_BASE = tl.constexpr(128.0)
FP16_BASE = tl.constexpr(64.0)


@triton.jit
def _levels(bytes, BASE: tl.constexpr, PLAIN: tl.constexpr):
    """BASE + low nibbles, BASE + high nibbles, ones: in bf16 or fp16 (fp32 where PLAIN)."""
    if PLAIN:
        low = (bytes & 15).to(tl.float32) + BASE
        high = (bytes >> 4).to(tl.float32) + BASE
        return low, high, tl.full(bytes.shape, 1.0, tl.float32)
    elif BASE == BF16_BASE:
        return tl.inline_asm_elementwise(
            BF16_LEVELS, "=r,=r,=r,=r,=r,=r,r", [bytes], (tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 4
        )
    else:
        return tl.inline_asm_elementwise(
            FP16_LEVELS, "=r,=r,=r,=r,=r,=r,r", [bytes], (tl.float16, tl.float16, tl.float16), True, 4
        )


@triton.jit
def _scale_and_offset(pair, BASE: tl.constexpr):
    """The two halves of a 32-bit word in fp32."""
    if BASE == BF16_BASE:
        scale = (pair << 16).to(tl.float32, bitcast=True)
        offset = (pair & -65536).to(tl.float32, bitcast=True)
    else:
        scale = (pair & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        offset = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return scale, offset


@triton.jit
def _add_dot(total, levels, ones, x, pair, BASE: tl.constexpr, PLAIN: tl.constexpr):
    if PLAIN:
        x = x.to(tl.float32)  # the interpreter's product of bf16 matrices is garbage
    scale, offset = _scale_and_offset(pair, BASE)
    offset = tl.fma(scale, -(BASE + 8.0), offset)
    total = tl.fma(scale[:, :, None], tl.dot(levels, x), total)
    return tl.fma(offset[:, :, None], tl.dot(ones, x), total)


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

    pairs_ptr: scale and offset as one int32. A chunk is CHUNK bytes of an output, that is CHUNK inputs of an
    even group and as many of the odd one after it. SLICES must equal the number of warps: Triton gives each
    warp of a batched product its own slices.
    """
    CHUNKS: tl.constexpr = GROUP // CHUNK
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_in = tl.minimum(n, N - 1)
    r = tl.program_id(2).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, CHUNK)
    groups = K // GROUP
    chunks = row_bytes // CHUNK
    steps = tl.cdiv(chunks, SLICES * tl.num_programs(1))
    chunk = tl.program_id(1) * steps * SLICES + tl.arange(0, SLICES)
    group = chunk // CHUNKS * 2
    packed_ptrs = packed_ptr + n_in.to(tl.int64)[None, :, None] * row_bytes + j[None, None, :]
    x_ptrs = x_ptr + r[None, None, :] * K + j[None, :, None]
    row_in = (r < m)[None, None, :]
    pairs_ptrs = pairs_ptr + group[:, None].to(tl.int64) * N + n_in[None, :]
    even = tl.load(pairs_ptrs, mask=(group < groups)[:, None], other=0)
    odd = tl.load(pairs_ptrs + N, mask=(group + 1 < groups)[:, None], other=0)
    total = tl.zeros((SLICES, BLOCK_N, BLOCK_M), tl.float32)
    for _ in tl.range(0, steps, num_stages=STAGES):
        column = group * GROUP + chunk % CHUNKS * CHUNK
        bytes = tl.load(
            packed_ptrs + chunk[:, None, None] * CHUNK, mask=(chunk < chunks)[:, None, None], other=0
        )
        x_even = tl.load(
            x_ptrs + column[:, None, None], mask=row_in & (group < groups)[:, None, None], other=0.0
        )
        x_odd = tl.load(
            x_ptrs + column[:, None, None] + GROUP,
            mask=row_in & (group + 1 < groups)[:, None, None],
            other=0.0,
        )
        # Triton copies ahead only what a product reads. Scales are fetched one step early by hand.
        chunk += SLICES
        group = chunk // CHUNKS * 2
        pairs_ptrs = pairs_ptr + group[:, None].to(tl.int64) * N + n_in[None, :]
        next_even = tl.load(pairs_ptrs, mask=(group < groups)[:, None], other=0)
        next_odd = tl.load(pairs_ptrs + N, mask=(group + 1 < groups)[:, None], other=0)
        low, high, ones = _levels(bytes, BASE, PLAIN)
        total = _add_dot(total, low, ones, x_even, even, BASE, PLAIN)
        total = _add_dot(total, high, ones, x_odd, odd, BASE, PLAIN)
        even = next_even
        odd = next_odd
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

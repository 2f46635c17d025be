"""What the low-bit kernels for 16-bit x share: levels from bytes, and the sum over a run of inputs.

Import this only where triton is installed.
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
def dot_total(
    x_ptr, packed_ptrs, pairs_ptrs, groups_apart, r, m, K, row_bytes, steps, first,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SLICES: tl.constexpr, STAGES: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """[SLICES, BLOCK_N, BLOCK_M] in fp32: the slices' shares of BLOCK_N outputs for rows r of x [m, K].

    A chunk is CHUNK bytes of an output, that is CHUNK inputs of an even group and as many of the odd one
    after it. SLICES must equal the number of warps: Triton gives each warp of a batched product its own
    slices.

    Args:
        packed_ptrs: [BLOCK_N], where the levels of each output begin.
        pairs_ptrs: [BLOCK_N], its first group's scale and offset as one int32.
        groups_apart: pairs from one group to the next, a number or [1, BLOCK_N].
        steps: of SLICES chunks each, from chunk `first`.
    """
    CHUNKS: tl.constexpr = GROUP // CHUNK
    j = tl.arange(0, CHUNK)
    groups = K // GROUP
    chunks = row_bytes // CHUNK
    chunk = first + tl.arange(0, SLICES)
    group = chunk // CHUNKS * 2
    packed_ptrs = packed_ptrs[None, :, None] + j[None, None, :]
    x_ptrs = x_ptr + r[None, None, :] * K + j[None, :, None]
    row_in = (r < m)[None, None, :]
    pair_ptrs = pairs_ptrs[None, :] + group[:, None].to(tl.int64) * groups_apart
    even = tl.load(pair_ptrs, mask=(group < groups)[:, None], other=0)
    odd = tl.load(pair_ptrs + groups_apart, mask=(group + 1 < groups)[:, None], other=0)
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
        pair_ptrs = pairs_ptrs[None, :] + group[:, None].to(tl.int64) * groups_apart
        next_even = tl.load(pair_ptrs, mask=(group < groups)[:, None], other=0)
        next_odd = tl.load(pair_ptrs + groups_apart, mask=(group + 1 < groups)[:, None], other=0)
        low, high, ones = _levels(bytes, BASE, PLAIN)
        total = _add_dot(total, low, ones, x_even, even, BASE, PLAIN)
        total = _add_dot(total, high, ones, x_odd, odd, BASE, PLAIN)
        even = next_even
        odd = next_odd
    return total

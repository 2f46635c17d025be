"""A tile of 4-bit weights times 16-bit x: import this only where triton is installed.

A slice (a warp) takes tiles of 16 outputs and 64 inputs. A thread loads its 16 bytes of a tile at once, and
they are its operands of the tensor-core instructions: no shared memory, no barrier and no value that changes
its lane. That holds because of the order in `pack_levels`, and because the tensors here have the shapes that
they have: loads are flat, so that Triton deals out threads in the only way there is, and what is reshaped
and permuted afterwards arrives in the layout of `tl.dot`. Whether Triton still sees it so is tested in the
machine code; another layout would be slower, not wrong.

A nibble becomes a float by or-ing it into the mantissa of a power of two B: the products are with B + q, and
B + 8 goes off again with the offset, as (offset - (B + 8) scale) * sum(x). The sum of x comes from the same
instruction with ones for weights, which lands where it is needed.
"""

import triton
import triton.language as tl


def _assembly(at: int, base: int) -> tl.constexpr:
    """Assembly that takes the nibbles of two words, $8 and $9, to bit `at` of a number of B's bits, `base`.

    $0 to $7 are pairs of numbers: a mask takes one nibble of either half of a word.
    """
    lines = [".reg .b32 a;"]
    for i in range(8):
        word, shift = 8 + i // 2 % 2, i // 4 * 4 + i % 2 * 8 - at
        lines += [
            f"{'shl' if shift < 0 else 'shr'}.b32 a, ${word}, {abs(shift)};",
            f"lop3.b32 ${i}, a, {0x000F000F << at:#x}, {base << 16 | base:#x}, 0xEA;",
        ]
    return tl.constexpr("{" + " ".join(lines) + "}")


# fp16 has more mantissa: the nibble goes four bits up, which keeps B at 64 and the sums with it small.
BF16_LEVELS, FP16_LEVELS = _assembly(0, 0x4300), _assembly(4, 0x5400)
# Triton chooses the layout of an operand by what was joined on its way: so the ones are made like levels.
BF16_ONES, FP16_ONES = tl.constexpr("mov.b32 $0, 0x3F803F80;"), tl.constexpr("mov.b32 $0, 0x3C003C00;")
IN_PAIRS = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,r,r")
BF16_BASE = tl.constexpr(128.0)
FP16_BASE = tl.constexpr(64.0)


@triton.jit
def _nibbles(pairs, AT: tl.constexpr, BASE: tl.constexpr):
    """Of words [n, 2] what the assembly makes of them, [n, 2, 2, 2] in fp32: half of a word, word, byte."""
    first, second = tl.split(pairs)
    word = tl.join(first, second)[:, None, :, None]
    shift = AT + 16 * tl.arange(0, 2)[None, :, None, None] + 8 * tl.arange(0, 2)[None, None, None, :]
    return ((word >> shift) & 15).to(tl.float32) + BASE


@triton.jit
def _four(a, b, c, d):
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def _halves(words, BASE: tl.constexpr, PLAIN: tl.constexpr):
    """BASE + the levels of the first 32 inputs of each tile and of the other 32, in the order of storage."""
    if PLAIN:
        pairs = tl.reshape(words, (words.numel // 2, 2))
        return _nibbles(pairs, 0, BASE), _nibbles(pairs, 4, BASE)
    else:
        LEVELS: tl.constexpr = BF16_LEVELS if BASE == BF16_BASE else FP16_LEVELS
        dtype = tl.bfloat16 if BASE == BF16_BASE else tl.float16
        a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
            LEVELS, IN_PAIRS, [words], (dtype, dtype, dtype, dtype, dtype, dtype, dtype, dtype), True, 2
        )
        return _four(a, b, c, d), _four(e, f, g, h)


@triton.jit
def _weights(half, TILES: tl.constexpr, SLICES: tl.constexpr):
    """[TILES * SLICES, 16 outputs, 32 inputs] of levels in the order of storage."""
    half = tl.reshape(half, (TILES, SLICES, 8, 4, 2, 2, 2, 2))
    return tl.reshape(tl.permute(half, (0, 1, 4, 2, 6, 3, 7, 5)), (TILES * SLICES, 16, 32))


@triton.jit
def _ones(SLICES: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr):
    if PLAIN:
        return tl.full((SLICES, 16, 32), 1.0, tl.float32)
    else:
        none = tl.zeros((SLICES * 128,), tl.int32)
        ONES: tl.constexpr = BF16_ONES if BASE == BF16_BASE else FP16_ONES
        dtype = tl.bfloat16 if BASE == BF16_BASE else tl.float16
        one = tl.inline_asm_elementwise(ONES, "=r,r,r", [none], dtype, True, 2)
        return _weights(_four(one, one, one, one), 1, SLICES)


@triton.jit
def _inputs(x, BLOCK_M: tl.constexpr, SLICES: tl.constexpr, PLAIN: tl.constexpr):
    """[SLICES, 32 inputs, BLOCK_M]: the inputs in the order of `_weights`."""
    if PLAIN:
        x = x.to(tl.float32)  # the interpreter's product of bf16 matrices is garbage
    x = tl.reshape(x, (BLOCK_M // 8, SLICES, 8, 4, 2, 2, 2))
    return tl.reshape(tl.permute(x, (1, 5, 3, 4, 6, 0, 2)), (SLICES, 32, BLOCK_M))


@triton.jit
def _for_each_tile(one, TILES: tl.constexpr):
    """[SLICES, ...] as [TILES * SLICES, ...]."""
    if TILES > 1:
        one = tl.broadcast_to(one[None], (TILES, one.shape[0], one.shape[1], one.shape[2]))
        one = tl.reshape(one, (TILES * one.shape[1], one.shape[2], one.shape[3]))
    return one


@triton.jit
def _for_each_row(one, TILES: tl.constexpr, SLICES: tl.constexpr, BLOCK_M: tl.constexpr):
    """What belongs to outputs, in the order of `outputs_of_pairs`, as [TILES * SLICES, 16, BLOCK_M]."""
    one = tl.permute(tl.reshape(one, (2, TILES, SLICES, 8, 4)), (1, 2, 0, 3, 4))
    one = tl.broadcast_to(one[:, :, :, :, None, :, None], (TILES, SLICES, 2, 8, BLOCK_M // 8, 4, 2))
    return tl.reshape(one, (TILES * SLICES, 16, BLOCK_M))


@triton.jit
def _add_scaled(
    total, product, sums, pair,
    TILES: tl.constexpr, SLICES: tl.constexpr, BLOCK_M: tl.constexpr, BASE: tl.constexpr,
):  # fmt: skip
    """total + scale * product + (offset - (BASE + 8) scale) * sums; pair: both halves in an int32."""
    if BASE == BF16_BASE:
        scale = (pair << 16).to(tl.float32, bitcast=True)
        offset = (pair & -65536).to(tl.float32, bitcast=True)
    else:
        scale = (pair & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        offset = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    offset = tl.fma(scale, -(BASE + 8.0), offset)
    total = tl.fma(_for_each_row(scale, TILES, SLICES, BLOCK_M), product, total)
    return tl.fma(_for_each_row(offset, TILES, SLICES, BLOCK_M), _for_each_tile(sums, TILES), total)


@triton.jit
def add_tiles(
    total, tiles, x,
    GROUP: tl.constexpr, TILES: tl.constexpr, SLICES: tl.constexpr, BLOCK_M: tl.constexpr,
    BASE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """total + a tile of each slice and row of tiles; the two halves of a tile have one group or two."""
    words, low_pair, high_pair = tiles
    x_low, x_high = x
    low, high = _halves(words, BASE, PLAIN)
    low, high = _weights(low, TILES, SLICES), _weights(high, TILES, SLICES)
    x_low, x_high = _inputs(x_low, BLOCK_M, SLICES, PLAIN), _inputs(x_high, BLOCK_M, SLICES, PLAIN)
    ones = _ones(SLICES, BASE, PLAIN)
    product, sums = tl.dot(low, _for_each_tile(x_low, TILES)), tl.dot(ones, x_low)
    if GROUP == 32:
        total = _add_scaled(total, product, sums, low_pair, TILES, SLICES, BLOCK_M, BASE)
        product, sums = tl.dot(high, _for_each_tile(x_high, TILES)), tl.dot(ones, x_high)
    else:
        product, sums = tl.dot(high, _for_each_tile(x_high, TILES), product), tl.dot(ones, x_high, sums)
    return _add_scaled(total, product, sums, high_pair, TILES, SLICES, BLOCK_M, BASE)

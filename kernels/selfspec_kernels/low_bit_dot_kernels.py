"""The sum that the low-bit kernels for 16-bit x share: import this only where triton is installed.

Each warp sums its own tiles (`low_bit_tile_kernels`) of the same outputs; the sums meet at the end. A warp
has the next AHEAD tiles under way, in registers: at K = 4,096 often all that it has. Weights depend on no
kernel of a step, so the first of them are loaded before the kernel before this one has ended.
"""

import triton
import triton.language as tl

from selfspec_kernels.low_bit_tile_kernels import add_tiles


@triton.jit
def rows_of_words(TILES: tl.constexpr, SLICES: tl.constexpr):
    """Which of a program's rows of tiles each word of a load belongs to."""
    return tl.arange(0, TILES * SLICES * 128)[None, :] // (128 * SLICES)


@triton.jit
def outputs_of_pairs(TILES: tl.constexpr, SLICES: tl.constexpr):
    """Which of a program's outputs each scale and offset of a load belongs to."""
    # Three shapes for three loads: loads of one shape get one layout, even where a layout each is better.
    at = tl.arange(0, 2 * TILES * SLICES * 32)[None, None, :]
    return at // (32 * SLICES) % TILES * 16 + at // (32 * SLICES * TILES) * 8 + at % 32 // 4


@triton.jit
def _load_tiles(
    word_ptrs, pair_ptrs, apart, first, K,
    GROUP: tl.constexpr, TILES: tl.constexpr, SLICES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Levels of a tile of each slice, from tile `first`, scales of its first half and of its second one."""
    if EVEN:
        low = tl.load(pair_ptrs)
        high = low
        if GROUP == 32:
            high = tl.load(pair_ptrs + apart)
        return tl.load(word_ptrs), low, high
    else:
        # Beyond the last tile there is the last one again, with scales of 0.
        last = tl.cdiv(K, 64) - 1
        slice = tl.arange(0, TILES * SLICES * 128)[None, :] // 128 % SLICES
        words = tl.load(word_ptrs - tl.maximum(first + slice - last, 0) * 128)
        slice = tl.arange(0, 2 * TILES * SLICES * 32)[None, None, :] // 32 % SLICES
        low = tl.load(pair_ptrs, mask=(first + slice) * 64 < K, other=0)
        high = low
        if GROUP == 32:
            high = tl.load(pair_ptrs + apart, mask=(first + slice) * 64 + 32 < K, other=0)
        return words, low, high


@triton.jit
def _load_inputs(x_ptrs, first, K, BLOCK_M: tl.constexpr, SLICES: tl.constexpr, EVEN: tl.constexpr):
    """The first 32 inputs of a tile of each slice, and the other 32."""
    if EVEN:
        return tl.load(x_ptrs), tl.load(x_ptrs + 32)
    else:
        beyond = (first + tl.arange(0, BLOCK_M * SLICES * 32) // 256 % SLICES) * 64 + 32 - K
        low = tl.load(x_ptrs - tl.maximum(beyond, 0))
        return low, tl.load(x_ptrs + 32 - tl.maximum(beyond + 32, 0))


@triton.jit
def first_tiles(
    word_ptrs, pair_ptrs, apart, K,
    GROUP: tl.constexpr, TILES: tl.constexpr, SLICES: tl.constexpr, AHEAD: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What `dot_total` begins with; reads nothing but weights."""
    at = tl.arange(0, TILES * SLICES * 128)[None, :]
    word_ptrs += at % (128 * SLICES)
    slice = tl.arange(0, 2 * TILES * SLICES * 32)[None, None, :] // 32 % SLICES
    pair_ptrs += (slice * 64 // GROUP).to(tl.int64) * apart
    tiles = ()
    for i in tl.static_range(AHEAD):
        tile = _load_tiles(word_ptrs, pair_ptrs, apart, i * SLICES, K, GROUP, TILES, SLICES, EVEN)
        # Unrolled while Triton compiles: a tuple that grows, and a starred one is no Triton.
        tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005
        word_ptrs += SLICES * 128
        pair_ptrs += SLICES * 64 // GROUP * apart
    return tiles, word_ptrs, pair_ptrs


@triton.jit
def dot_total(
    started, x_ptr, apart, first_row, m, K,
    GROUP: tl.constexpr, TILES: tl.constexpr, BLOCK_M: tl.constexpr, SLICES: tl.constexpr,
    AHEAD: tl.constexpr, EVEN: tl.constexpr, BASE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """[TILES * 16 outputs, BLOCK_M] in fp32 for rows from first_row of x [m, K].

    SLICES must equal the number of warps: Triton gives each warp of a batched product its own slices. From 2
    on, so that a step of them is a whole number of groups.

    Args:
        started: of `first_tiles`.
        apart: scales from one group to the next, a number or one for each scale.
    """
    tiles, word_ptrs, pair_ptrs = started
    at = tl.arange(0, BLOCK_M * SLICES * 32)
    # Rows beyond the last are the last one again: nobody reads what becomes of them.
    r = tl.minimum(at // (256 * SLICES) * 8 + at % 256 // 32, m - 1 - first_row)
    at = r * K + at // 256 % SLICES * 64 + at % 32
    x_ptrs = x_ptr + first_row * K + tl.multiple_of(tl.max_contiguous(at, 32), 8)
    total = tl.zeros((TILES * SLICES, 16, BLOCK_M), tl.float32)
    first = 0
    for _ in tl.range(0, tl.cdiv(tl.cdiv(K, 64), SLICES * AHEAD) - 1, num_stages=1):
        after = ()
        for i in tl.static_range(AHEAD):
            tile = _load_tiles(
                word_ptrs + i * SLICES * 128, pair_ptrs + i * (SLICES * 64 // GROUP) * apart, apart,
                first + (AHEAD + i) * SLICES, K, GROUP, TILES, SLICES, EVEN,
            )  # fmt: skip
            after = after + (tile,)  # type: ignore[assignment]  # noqa: RUF005
            x = _load_inputs(x_ptrs + i * SLICES * 64, first + i * SLICES, K, BLOCK_M, SLICES, EVEN)
            total = add_tiles(total, tiles[i], x, GROUP, TILES, SLICES, BLOCK_M, BASE, PLAIN)
        tiles = after
        first += AHEAD * SLICES
        word_ptrs += AHEAD * SLICES * 128
        pair_ptrs += AHEAD * (SLICES * 64 // GROUP) * apart
        x_ptrs += AHEAD * SLICES * 64
    for i in tl.static_range(AHEAD):
        x = _load_inputs(x_ptrs + i * SLICES * 64, first + i * SLICES, K, BLOCK_M, SLICES, EVEN)
        total = add_tiles(total, tiles[i], x, GROUP, TILES, SLICES, BLOCK_M, BASE, PLAIN)
    total = tl.sum(tl.reshape(total, (TILES, SLICES, 16, BLOCK_M)), axis=1)
    return tl.reshape(total, (TILES * 16, BLOCK_M))

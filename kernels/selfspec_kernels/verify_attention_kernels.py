"""The Triton kernels behind `verify_attention`: import this only where triton is installed.

A row is summed in one order, whoever sums: every block of slots by itself, the blocks of a part one after the
other, the parts of a span likewise, then the spans. `span_kernel` takes a piece, which is a span or, where
spans are too few for the GPU, a part or a block of one; `combine_kernel` does what is left. Where one piece
covers the cache the first one may write the result itself. None of this shows in the bits. Nothing is atomic:
equal inputs give equal bits.
"""

import triton
import triton.language as tl

from selfspec_kernels.overlap_kernels import allow_next, await_previous, request


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _nothing(ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Top, mass and total of no slots."""
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    return top, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, SIZE), tl.float32)


@triton.jit
def _rescaled(top, new):
    """exp(top - new) where new may be -inf: then top is too, and there is nothing to rescale."""
    return tl.exp(top - tl.where(new == float("-inf"), 0.0, new))


@triton.jit
def _added(top, mass, total, next_top, next_mass, next_total):
    """Two sums as one. What has seen nothing (-inf, 0, 0) changes no bit of the other."""
    new = tl.maximum(top, next_top)
    scale = _rescaled(top, new)
    next_scale = _rescaled(next_top, new)
    mass = tl.fma(mass, scale, next_mass * next_scale)
    return new, mass, tl.fma(total, scale[:, None], next_total * next_scale[:, None])


@triton.jit
def _finished(total, mass, top, sink):
    """Weighted values over the softmax's denominator, with a sink in it if there is one."""
    if sink is not None:
        new = tl.maximum(top, sink)
        scale = _rescaled(top, new)
        mass = mass * scale + tl.exp(sink - new)
        total *= scale[:, None]
    return total / mass[:, None]


@triton.jit
def _visible(slot, own, length, m, tree_ptr, depths_ptr, window):
    """Whether tokens own [rows] see slots [slots], both counted in the row: bool [rows, slots]."""
    column = slot - length
    among = (column >= 0) & (column < m)
    if tree_ptr is None:
        visible = column[None, :] <= own[:, None]
    else:
        bits = tl.load(tree_ptr + own)
        shift = tl.where(among, column, 0)
        # In halves: numbers of 64 bits for every query and slot would not find registers.
        low, high = bits.to(tl.int32), (bits >> 32).to(tl.int32)
        half = tl.where((shift < 32)[None, :], low[:, None], high[:, None])
        seen = ((half >> (shift & 31)[None, :]) & 1) != 0
        visible = (column < 0)[None, :] | (among[None, :] & seen)
    if window is not None:
        if depths_ptr is None:
            visible &= column[None, :] > own[:, None] - window
        else:
            depth = tl.load(depths_ptr + own)
            position = tl.where(among, tl.load(depths_ptr + column, mask=among, other=0), column)
            visible &= position[None, :] > depth[:, None] - window
    return visible


@triton.jit
def first_seen(length, window, BLOCK_N: tl.constexpr):
    """Where the first block begins that a row's tokens may see: blocks start where they always do."""
    first = tl.zeros((), tl.int32)
    if window is not None:
        first = tl.maximum(length - window + 1, 0) // BLOCK_N * BLOCK_N
    return first


@triton.jit
def _request_slots(
    key_ptr, value_ptr, lengths_ptr, b, first, S, window, key_slot, value_slot,
    SIZE: tl.constexpr, BLOCK_N: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Keys and values of the first slots of a program, while the kernel before this one still runs.

    It may be writing the lengths. They are only a hint here, and left out of the first-level cache, where
    what is read later would be found as it is now.
    """
    length = tl.load(lengths_ptr + b, cache_modifier=".cg").to(tl.int32)
    first = tl.maximum(first, first_seen(length, window, BLOCK_N))
    if first < length:
        slot = tl.minimum(first + tl.arange(0, AHEAD), tl.minimum(length, S) - 1).to(tl.int64)
        LINES: tl.constexpr = SIZE * key_ptr.dtype.element_ty.primitive_bitwidth // 1024
        WHOLE_LINES: tl.constexpr = 128 if LINES < 2 else (256 if LINES < 4 else 512)
        request(key_ptr + slot * key_slot, WHOLE_LINES, True)
        request(value_ptr + slot * value_slot, WHOLE_LINES, True)


@triton.jit(do_not_specialize=["m", "S"], do_not_specialize_on_alignment=["lengths_ptr"])
def span_kernel(
    query_ptr, key_ptr, value_ptr, lengths_ptr, tree_ptr, depths_ptr, sinks_ptr,
    out_ptr, totals_ptr, masses_ptr, tops_ptr, m, S, H, groups, scaling, window, softcap,
    query_row, query_head, query_token, key_row, key_head, key_slot, value_row, value_head, value_slot,
    SIZE: tl.constexpr, PIECE: tl.constexpr, PART: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, PLAIN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of groups * m queries program_id(0), row and key head program_id(1), piece program_id(2).

    Args:
        out_ptr: [B, m, H, SIZE], where one piece is all and there is neither tree nor window; None otherwise.
        totals_ptr, masses_ptr, tops_ptr: [B, H, m, pieces, SIZE] and [B, H, m, pieces] in fp32: sums of
            exp(score - top) * value and of exp(score - top), and the top; not of pieces that no token of
            the row may see. None where out_ptr is there.
        query_row, ...: strides.
        PIECE, PART: a piece is PIECE slots, summed in parts of PART where it is longer than that.
        AHEAD: slots that are asked for while the kernel before this one still runs.
        BLOCK_D: covers SIZE.
    """
    allow_next(PDL)
    b = (tl.program_id(1) // (H // groups)).to(tl.int64)
    kv_head = tl.program_id(1) % (H // groups)
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = r < groups * m
    own = r % m
    head = kv_head * groups + r // m
    d = tl.arange(0, BLOCK_D)
    d_in = d < SIZE
    key_ptr += b * key_row + kv_head.to(tl.int64) * key_head
    value_ptr += b * value_row + kv_head.to(tl.int64) * value_head
    first = tl.program_id(2) * PIECE
    if PDL:
        _request_slots(
            key_ptr, value_ptr, lengths_ptr, b, first, S, window, key_slot, value_slot, SIZE, BLOCK_N, AHEAD
        )
    await_previous(PDL)
    query_ptrs = query_ptr + b * query_row + head.to(tl.int64) * query_head + own.to(tl.int64) * query_token
    query = tl.load(query_ptrs[:, None] + d[None, :], mask=row_in[:, None] & d_in[None, :], other=0.0)
    if PLAIN:
        query = query.to(tl.float32)  # the interpreter's product of bf16 matrices is garbage
    length = tl.load(lengths_ptr + b).to(tl.int32)
    last = tl.minimum(tl.minimum(first + PIECE, length + m), S)
    first = tl.maximum(first, first_seen(length, window, BLOCK_N))
    top, mass, total = _nothing(BLOCK_M, BLOCK_D)
    span_top, span_mass, span_total = _nothing(BLOCK_M, BLOCK_D)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        slot = start + tl.arange(0, BLOCK_N)
        slot_in = slot < last
        key_ptrs = key_ptr + slot.to(tl.int64)[None, :] * key_slot + d[:, None]
        key = tl.load(key_ptrs, mask=d_in[:, None] & slot_in[None, :], other=0.0)
        value_ptrs = value_ptr + slot.to(tl.int64)[:, None] * value_slot + d[None, :]
        value = tl.load(value_ptrs, mask=slot_in[:, None] & d_in[None, :], other=0.0)
        score = tl.dot(query, key.to(query.dtype), input_precision="ieee") * scaling
        if softcap is not None:
            score = _tanh(score / softcap) * softcap
        visible = _visible(slot, own, length, m, tree_ptr, depths_ptr, window) & slot_in[None, :]
        score = tl.where(visible, score, float("-inf"))
        block_top = tl.max(score, axis=1)
        weight = _rescaled(score, block_top[:, None])
        block_mass = tl.sum(weight, axis=1)
        weight = weight.to(tl.float32 if PLAIN else value.dtype)
        block_total = tl.dot(weight, value.to(weight.dtype), input_precision="ieee")
        top, mass, total = _added(top, mass, total, block_top, block_mass, block_total)
        if PIECE > PART:  # noqa: SIM102 (decided by the compiler)
            if (start + BLOCK_N) % PART == 0:
                span_top, span_mass, span_total = _added(span_top, span_mass, span_total, top, mass, total)
                top, mass, total = _nothing(BLOCK_M, BLOCK_D)
    if PIECE > PART:
        top, mass, total = _added(span_top, span_mass, span_total, top, mass, total)
    if out_ptr is not None:
        sink = None
        if sinks_ptr is not None:
            sink = tl.load(sinks_ptr + head, mask=row_in, other=0.0).to(tl.float32)
        out = _finished(total, mass, top, sink)
        out_ptrs = out_ptr + ((b * m + own) * H + head)[:, None] * SIZE + d[None, :]
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=row_in[:, None] & d_in[None, :])
    else:
        part = ((b * H + head) * m + own) * tl.num_programs(2) + tl.program_id(2)
        row_in &= first < last
        tl.store(tops_ptr + part, top, mask=row_in)
        tl.store(masses_ptr + part, mass, mask=row_in)
        total_ptrs = totals_ptr + part[:, None] * SIZE + d[None, :]
        tl.store(total_ptrs, total, mask=row_in[:, None] & d_in[None, :])


@triton.jit
def _piece(
    totals_ptr, masses_ptr, tops_ptr, at, piece, begin, end, SIZE: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Top, mass and total of a piece [1], or of nothing where it is not in [begin, end)."""
    there = (piece >= begin) & (piece < end)
    top = tl.load(tops_ptr + at + piece, mask=there, other=float("-inf"))
    mass = tl.load(masses_ptr + at + piece, mask=there, other=0.0)
    d = tl.arange(0, BLOCK_D)[None, :]
    total_ptrs = totals_ptr + (at + piece)[:, None] * SIZE + d
    return top, mass, tl.load(total_ptrs, mask=there[:, None] & (d < SIZE), other=0.0)


@triton.jit
def _part(
    totals_ptr, masses_ptr, tops_ptr, at, piece, begin, end, SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """The sum of BLOCKS pieces."""
    top, mass, total = _piece(totals_ptr, masses_ptr, tops_ptr, at, piece, begin, end, SIZE, BLOCK_D)
    for block in tl.static_range(1, BLOCKS):
        next_top, next_mass, next_total = _piece(
            totals_ptr, masses_ptr, tops_ptr, at, piece + block, begin, end, SIZE, BLOCK_D
        )
        top, mass, total = _added(top, mass, total, next_top, next_mass, next_total)
    return top, mass, total


@triton.jit
def _span(
    totals_ptr, masses_ptr, tops_ptr, at, piece, begin, end, SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The sum of PARTS sums of BLOCKS pieces."""
    top, mass, total = _part(
        totals_ptr, masses_ptr, tops_ptr, at, piece, begin, end, SIZE, BLOCK_D, BLOCKS
    )  # fmt: skip
    for part in tl.static_range(1, PARTS):
        next_top, next_mass, next_total = _part(
            totals_ptr, masses_ptr, tops_ptr, at, piece + part * BLOCKS, begin, end, SIZE, BLOCK_D, BLOCKS
        )
        top, mass, total = _added(top, mass, total, next_top, next_mass, next_total)
    return top, mass, total


@triton.jit(do_not_specialize=["m", "S", "pieces"], do_not_specialize_on_alignment=["lengths_ptr"])
def combine_kernel(
    totals_ptr, masses_ptr, tops_ptr, lengths_ptr, sinks_ptr, out_ptr, m, S, H, pieces, window,
    SIZE: tl.constexpr, BLOCK_D: tl.constexpr, PIECE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr, SPANS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [B, m, H, SIZE] of one query: b * H + head program_id(0), token program_id(1).

    Pieces of PIECE slots: BLOCKS are a part, PARTS of these a span. SPANS are read at a time, and what they
    hold is added one by one: the layout of a tile has no say in the order. Pieces that `span_kernel` left
    alone are not read.
    """
    allow_next(PDL)
    await_previous(PDL)
    head = tl.program_id(0) % H
    b = (tl.program_id(0) // H).to(tl.int64)
    start = ((b * H + head) * m + tl.program_id(1)) * pieces
    length = tl.load(lengths_ptr + b).to(tl.int32)
    begin = first_seen(length, window, BLOCK_N) // PIECE
    end = tl.cdiv(tl.minimum(length + m, S), PIECE)
    one = tl.arange(0, 1)
    AT_ONCE: tl.constexpr = SPANS * PARTS * BLOCKS
    top, mass, total = _nothing(1, BLOCK_D)
    for first in range(begin // AT_ONCE * AT_ONCE, end, AT_ONCE):
        for span in tl.static_range(SPANS):
            piece = first + span * (PARTS * BLOCKS) + one
            next_top, next_mass, next_total = _span(
                totals_ptr, masses_ptr, tops_ptr, start, piece, begin, end, SIZE, BLOCK_D, BLOCKS, PARTS
            )
            top, mass, total = _added(top, mass, total, next_top, next_mass, next_total)
    sink = None
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head + one).to(tl.float32)
    out = _finished(total, mass, top, sink)
    d = tl.arange(0, BLOCK_D)[None, :]
    out_ptrs = out_ptr + ((b * m + tl.program_id(1)) * H + head) * SIZE + d
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=d < SIZE)

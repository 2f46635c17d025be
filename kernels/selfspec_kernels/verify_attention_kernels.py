"""The Triton kernels behind `verify_attention`: import this only where triton is installed.

`span_kernel` attends to one span of slots with an online softmax; `combine_kernel` adds the spans of a row
up, in a fixed order. Where one span covers the cache the first one writes the result itself, by the same
operations, so that it makes no difference. Nothing is atomic: equal inputs give equal bits.
"""

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _rescaled(top, new):
    """exp(top - new) where new may be -inf: then top is too, and there is nothing to rescale."""
    return tl.exp(top - tl.where(new == float("-inf"), 0.0, new))


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
        shift = tl.where(among, column, 0).to(tl.int64)
        seen = ((bits[:, None] >> shift[None, :]) & 1) != 0
        visible = (column < 0)[None, :] | (among[None, :] & seen)
    if window is not None:
        if depths_ptr is None:
            visible &= column[None, :] > own[:, None] - window
        else:
            depth = tl.load(depths_ptr + own)
            position = tl.where(among, tl.load(depths_ptr + column, mask=among, other=0), column)
            visible &= position[None, :] > depth[:, None] - window
    return visible


@triton.jit(do_not_specialize=["m", "S"])
def span_kernel(
    query_ptr, key_ptr, value_ptr, lengths_ptr, tree_ptr, depths_ptr, sinks_ptr,
    out_ptr, totals_ptr, masses_ptr, tops_ptr, m, S, H, groups, scaling, window, softcap,
    query_row, query_head, query_token, key_row, key_head, key_slot, value_row, value_head, value_slot,
    SIZE: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, STAGES: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Rows of groups * m queries program_id(0), row and key head program_id(1), span program_id(2).

    Args:
        out_ptr: [B, m, H, SIZE], where one span is all; None otherwise.
        totals_ptr, masses_ptr, tops_ptr: [B, H, m, spans, SIZE] and [B, H, m, spans] in fp32: sums of
            exp(score - top) * value and of exp(score - top), and the top. None where out_ptr is there.
        query_row, ...: strides.
        BLOCK_D: covers SIZE.
    """
    b = (tl.program_id(1) // (H // groups)).to(tl.int64)
    kv_head = tl.program_id(1) % (H // groups)
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = r < groups * m
    own = r % m
    head = kv_head * groups + r // m
    d = tl.arange(0, BLOCK_D)
    d_in = d < SIZE
    query_ptrs = query_ptr + b * query_row + head.to(tl.int64) * query_head + own.to(tl.int64) * query_token
    query = tl.load(query_ptrs[:, None] + d[None, :], mask=row_in[:, None] & d_in[None, :], other=0.0)
    if PLAIN:
        query = query.to(tl.float32)  # the interpreter's product of bf16 matrices is garbage
    length = tl.load(lengths_ptr + b).to(tl.int32)
    first = tl.program_id(2) * SPAN
    last = tl.minimum(tl.minimum(first + SPAN, length + m), S)
    if window is not None:
        # Blocks before the first token's window are seen by nobody; the others start where they always do.
        first = tl.maximum(first, (length - window + 1) // BLOCK_N * BLOCK_N)
    key_ptr += b * key_row + kv_head.to(tl.int64) * key_head
    value_ptr += b * value_row + kv_head.to(tl.int64) * value_head
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
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
        new = tl.maximum(top, tl.max(score, axis=1))
        scale = _rescaled(top, new)
        weight = _rescaled(score, new[:, None])
        mass = mass * scale + tl.sum(weight, axis=1)
        weight = weight.to(tl.float32 if PLAIN else value.dtype)
        total = tl.dot(weight, value.to(weight.dtype), total * scale[:, None], input_precision="ieee")
        top = new
    if out_ptr is not None:
        sink = None
        if sinks_ptr is not None:
            sink = tl.load(sinks_ptr + head, mask=row_in, other=0.0).to(tl.float32)
        out = _finished(total, mass, top, sink)
        out_ptrs = out_ptr + ((b * m + own) * H + head)[:, None] * SIZE + d[None, :]
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=row_in[:, None] & d_in[None, :])
    else:
        part = ((b * H + head) * m + own) * tl.num_programs(2) + tl.program_id(2)
        tl.store(tops_ptr + part, top, mask=row_in)
        tl.store(masses_ptr + part, mass, mask=row_in)
        total_ptrs = totals_ptr + part[:, None] * SIZE + d[None, :]
        tl.store(total_ptrs, total, mask=row_in[:, None] & d_in[None, :])


@triton.jit(do_not_specialize=["m", "spans"])
def combine_kernel(
    totals_ptr, masses_ptr, tops_ptr, sinks_ptr, out_ptr, m, H, spans,
    SIZE: tl.constexpr, BLOCK_D: tl.constexpr, SPANS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """out [B, m, H, SIZE] of one query: b * H + head program_id(0), token program_id(1).

    SPANS covers all spans; TOGETHER of them are added at a time.
    """
    head = tl.program_id(0) % H
    b = (tl.program_id(0) // H).to(tl.int64)
    part = ((b * H + head) * m + tl.program_id(1)) * spans
    every = tl.arange(0, SPANS)
    top = tl.max(tl.load(tops_ptr + part + every, mask=every < spans, other=float("-inf")), axis=0)
    d = tl.arange(0, BLOCK_D)
    total = tl.zeros((1, BLOCK_D), tl.float32)
    mass = tl.zeros((1,), tl.float32)
    for first in range(0, spans, TOGETHER):
        span = first + tl.arange(0, TOGETHER)
        span_in = span < spans
        scale = _rescaled(tl.load(tops_ptr + part + span, mask=span_in, other=float("-inf")), top)
        mass += tl.sum(tl.load(masses_ptr + part + span, mask=span_in, other=0.0) * scale, axis=0)
        total_ptrs = totals_ptr + (part + span)[:, None] * SIZE + d[None, :]
        inside = span_in[:, None] & (d < SIZE)[None, :]
        values = tl.load(total_ptrs, mask=inside, other=0.0) * scale[:, None]
        total += tl.sum(values, axis=0)[None, :]
    sink = None
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head + tl.zeros((1,), tl.int32)).to(tl.float32)
    out = _finished(total, mass, tl.zeros((1,), tl.float32) + top, sink)
    out_ptrs = out_ptr + ((b * m + tl.program_id(1)) * H + head) * SIZE + d[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(d < SIZE)[None, :])

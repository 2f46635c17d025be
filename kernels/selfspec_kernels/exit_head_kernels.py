"""The Triton kernels behind `exit_head`: import this only where triton is installed.

Two launches behind the norm (`row_norm_kernels`, left out where there is neither norm nor calibration):
`head_kernel` for blocks of the vocabulary, `choose_kernel` once a row. Nothing is atomic: equal inputs give
equal bits.
"""

import triton
import triton.language as tl

from selfspec_kernels.noise_kernels import gumbel, position_key
from selfspec_kernels.overlap_kernels import allow_next, await_previous, request


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _logits(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, r, row_in, token, token_in, D, weight_stride, multiplier, softcap,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    PLAIN: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, ROWS] in fp32, rounded to x's dtype at each step: tokens of a block, rows of x [rows, D]."""
    dtype = x_ptr.dtype.element_ty
    d = tl.arange(0, BLOCK_D)
    weight_ptrs = weight_ptr + token.to(tl.int64)[:, None] * weight_stride + d[None, :]
    x_ptrs = x_ptr + r.to(tl.int64)[None, :] * D + d[:, None]
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    for first in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        inside = first + d < D
        weight = tl.load(weight_ptrs + first, mask=token_in[:, None] & inside[None, :], other=0.0)
        x = tl.load(x_ptrs + first, mask=inside[:, None] & row_in[None, :], other=0.0)
        if PLAIN:
            x = x.to(tl.float32)  # the interpreter's product of bf16 matrices is garbage
        total = tl.dot(weight.to(x.dtype), x, total, input_precision="tf32x3")
    if scale_ptr is not None:
        total *= tl.load(scale_ptr + token, mask=token_in, other=0.0)[:, None]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + token, mask=token_in, other=0.0).to(tl.float32)[:, None]
    total = total.to(dtype).to(tl.float32)
    total = (total * multiplier).to(dtype).to(tl.float32)
    if softcap is not None:
        total = _tanh((total / softcap).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
        total = (total * softcap).to(dtype).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["rows", "width", "row_stride", "column_stride"])
def head_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, shortlist_ptr, temperature_ptr, keys_ptr, positions_ptr,
    values_ptr, logits_ptr, indices_ptr, tops_ptr, masses_ptr,
    rows, width, N, D, weight_stride, row_stride, column_stride, multiplier, softcap,
    ROWS: tl.constexpr, COUNT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, PLAIN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The best COUNT tokens of a block, and its part of the log-sum-exp.

    Rows program_id(0), so that the programs that share weights run together; tokens program_id(1).

    Args:
        x_ptr: [rows, D] contiguous.
        shortlist_ptr: [N] int32, or None for tokens 0 to N - 1.
        keys_ptr, positions_ptr: noise, see `noise.Noise`; None for none. row_stride and column_stride are
            those of the positions.
        values_ptr, logits_ptr, indices_ptr: [rows, blocks, COUNT] score with noise, score without it, token.
        tops_ptr, masses_ptr: [rows, blocks] maximum m of the scores, sum of exp(score - m).
        AHEAD: bytes of each weight row that are asked for while the kernel before this one still runs.
    """
    allow_next(PDL)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_in = r < rows
    column = tl.arange(0, BLOCK_N)
    n = tl.program_id(1) * BLOCK_N + column
    token_in = n < N
    token = n
    if shortlist_ptr is None:
        request(weight_ptr + tl.minimum(n, N - 1).to(tl.int64) * weight_stride, AHEAD, PDL)
    await_previous(PDL)
    if shortlist_ptr is not None:
        token = tl.load(shortlist_ptr + n, mask=token_in, other=0)
    scores = _logits(
        x_ptr, weight_ptr, scale_ptr, bias_ptr, r, row_in, token, token_in, D, weight_stride, multiplier,
        softcap, ROWS, BLOCK_N, BLOCK_D, STAGES, PLAIN,
    )  # fmt: skip
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + r // width, mask=row_in, other=1.0)
        scores = tl.div_rn(scores, tl.broadcast_to(temperature[None, :], (BLOCK_N, ROWS)))
    scores = tl.where(token_in[:, None], scores, float("-inf"))
    top = tl.max(scores, axis=0)
    base = tl.where(top == float("-inf"), 0.0, top)
    block = r.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(tops_ptr + block, top, mask=row_in)
    tl.store(masses_ptr + block, tl.sum(tl.exp(scores - base[None, :]), axis=0), mask=row_in)
    # NaN is never chosen, but shows in the sum of exponentials, so in the log-probability.
    noisy = tl.where(scores == scores, scores, float("-inf"))
    if keys_ptr is not None:
        position_ptrs = positions_ptr + r // width * row_stride + r % width * column_stride
        position = tl.load(position_ptrs, mask=row_in, other=0)
        key = position_key(tl.load(keys_ptr + r // width, mask=row_in, other=0), position)
        noisy += gumbel(key[None, :], token[:, None])
    for i in tl.static_range(COUNT):
        value, at = tl.max(noisy, axis=0, return_indices=True, return_indices_tie_break_left=True)
        hit = column[:, None] == at[None, :]
        tl.store(values_ptr + block * COUNT + i, value, mask=row_in)
        tl.store(logits_ptr + block * COUNT + i, tl.sum(tl.where(hit, scores, 0.0), axis=0), mask=row_in)
        tl.store(
            indices_ptr + block * COUNT + i, tl.sum(tl.where(hit, token[:, None], 0), axis=0), mask=row_in
        )
        noisy = tl.where(hit, float("-inf"), noisy)


@triton.jit
def choose_kernel(
    values_ptr, logits_ptr, indices_ptr, tops_ptr, masses_ptr, tokens_ptr, scores_ptr, logprobs_ptr, blocks,
    COUNT: tl.constexpr, BLOCKS: tl.constexpr, ENTRIES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The best COUNT of a row's blocks * COUNT entries, row program_id(0).

    BLOCKS covers all blocks; ENTRIES are read at a time, anew for every choice: few, and in the cache.
    """
    allow_next(PDL)
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    b = row * blocks + tl.arange(0, BLOCKS)
    block_in = tl.arange(0, BLOCKS) < blocks
    top = tl.load(tops_ptr + b, mask=block_in, other=float("-inf"))
    mass = tl.load(masses_ptr + b, mask=block_in, other=0.0)
    highest = tl.max(top, axis=0)
    log_sum = highest + tl.log(tl.sum(mass * tl.exp(top - highest), axis=0))
    start = row * blocks * COUNT
    last = tl.full((), float("inf"), tl.float32)
    last_at = tl.full((), -1, tl.int32)
    for i in tl.static_range(COUNT):
        best = tl.full((), float("-inf"), tl.float32)
        best_at = tl.zeros((), tl.int32)
        for first in range(0, blocks * COUNT, ENTRIES):
            entry = first + tl.arange(0, ENTRIES)
            value = tl.load(values_ptr + start + entry, mask=entry < blocks * COUNT, other=float("-inf"))
            left = (value < last) | ((value == last) & (entry > last_at))
            value = tl.where(left, value, float("-inf"))
            here, at = tl.max(value, axis=0, return_indices=True, return_indices_tie_break_left=True)
            best_at = tl.where(here > best, first + at, best_at)
            best = tl.maximum(best, here)
        out = row * COUNT + i
        tl.store(tokens_ptr + out, tl.load(indices_ptr + start + best_at).to(tl.int64))
        tl.store(scores_ptr + out, best)
        tl.store(logprobs_ptr + out, tl.load(logits_ptr + start + best_at) - log_sum)
        last = best
        last_at = best_at

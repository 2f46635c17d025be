"""The Triton kernel behind `commit`: import this only where triton is installed."""

import triton
import triton.language as tl

from selfspec_kernels.overlap_kernels import allow_next, await_previous


@triton.jit(do_not_specialize=["width", "ends"])
def commit_kernel(
    sequences_ptr, lengths_ptr, limits_ptr, finished_ptr, counters_ptr, end_tokens_ptr,
    accepted_ptr, tokens_ptr, drafted_ptr, deepest_ptr, row_stride, width, ends,
    WIDTH: tl.constexpr, ENDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row, program_id(0); WIDTH covers its `width` tokens, ENDS the end tokens."""
    allow_next(PDL)
    await_previous(PDL)
    b = tl.program_id(0).to(tl.int64)
    if tl.load(finished_ptr + b).to(tl.int32) == 0:
        length = tl.load(lengths_ptr + b)
        limit = tl.load(limits_ptr + b)
        accepted = tl.load(accepted_ptr + b)
        step = tl.arange(0, WIDTH)
        offered = (step < width) & (step <= accepted) & (step < limit - length)
        token = tl.load(tokens_ptr + b * width + step, mask=offered, other=0)
        end = tl.arange(0, ENDS)
        end_token = tl.load(end_tokens_ptr + end, mask=end < ends, other=0)
        equal = (token[:, None] == end_token[None, :]) & (end < ends)[None, :]
        is_end = (tl.max(equal.to(tl.int32), axis=1) > 0) & offered
        first_end = tl.min(tl.where(is_end, step, WIDTH), axis=0)
        kept = offered & (step <= first_end)
        count = tl.sum(kept.to(tl.int32), axis=0).to(tl.int64)
        tl.store(sequences_ptr + b * row_stride + length + step, token, mask=kept)
        tl.store(lengths_ptr + b, length + count)
        done = (first_end < WIDTH) | (length + count >= limit)
        tl.store(finished_ptr + b, done)
        stands = tl.minimum(accepted, count)
        rejected = (stands < tl.minimum(tl.load(deepest_ptr + b), count)).to(tl.int64)
        counter = counters_ptr + b * 5
        tl.store(counter, tl.load(counter) + 1)
        tl.store(counter + 1, tl.load(counter + 1) + tl.load(drafted_ptr + b))
        tl.store(counter + 2, tl.load(counter + 2) + stands)
        tl.store(counter + 3, tl.load(counter + 3) + rejected)
        tl.store(counter + 4, tl.load(counter + 4) + count)

"""The Triton kernel behind `accept_rejection`: import this only where triton is installed."""

import triton
import triton.language as tl

from selfspec_kernels.accept_kernels import at_column, log_sum_of
from selfspec_kernels.noise_kernels import gumbel, position_key, uniform
from selfspec_kernels.score_kernels import LOWEST, kept, scores_of


@triton.jit(do_not_specialize=["K"])
def rejection_kernel(
    logits_ptr, tops_ptr, masses_ptr, thresholds_ptr, temperature_ptr, min_p_ptr, draft_ptr, q_ptr, found_ptr,
    deciding_ptr, deciding_positions_ptr, drawing_ptr, drawing_positions_ptr,
    accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr, K, V, parts, row_stride, column_stride, draft_stride,
    q_row_stride, q_column_stride, deciding_row_stride, deciding_column_stride, drawing_stride,
    NODES: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Accept or reject a chain of K tokens, then draw one more, row program_id(0).

    Args:
        tops_ptr, masses_ptr: [B, K+1, parts] from `choice_kernel`.
        thresholds_ptr: [B, K+1] from it, None without filters.
        found_ptr: [B] bool or None; q_ptr: [B, K, V].
    """
    b = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, NODES)
    node_in = node <= K
    part = tl.arange(0, PARTS)
    at = (b * (K + 1) + node)[:, None] * parts + part[None, :]
    inside = node_in[:, None] & (part < parts)[None, :]
    log_sums = log_sum_of(tops_ptr, masses_ptr, at, inside)
    tops = tl.max(tl.load(tops_ptr + at, mask=inside, other=float("-inf")), axis=1)
    thresholds = tl.full((NODES,), LOWEST, tl.int32)
    if thresholds_ptr is not None:
        thresholds = tl.load(thresholds_ptr + b * (K + 1) + node, mask=node_in, other=0)
    if temperature_ptr is not None:
        temperature_ptr += b
    min_p = 0.0
    if min_p_ptr is not None:
        min_p = tl.load(min_p_ptr + b)
    found = tl.zeros((), tl.int32)
    if found_ptr is not None:
        found = tl.load(found_ptr + b).to(tl.int32)
    logits_ptr += b * row_stride
    q_ptr += b * q_row_stride

    token = tl.load(draft_ptr + b * draft_stride + node, mask=node < K, other=-1)
    drafted = token >= 0
    score = scores_of(logits_ptr + node.to(tl.int64) * column_stride, token, drafted, temperature_ptr)
    logprob = tl.where(kept(score, thresholds, tops, min_p), score - log_sums, float("-inf"))
    q = tl.load(q_ptr + node.to(tl.int64) * q_column_stride + token, mask=drafted, other=0.0)
    q = tl.where(found > 0, 1.0, q)
    position_ptrs = deciding_positions_ptr + b * deciding_row_stride + node * deciding_column_stride
    position = tl.load(position_ptrs, mask=node < K, other=0)
    u = uniform(position_key(tl.load(deciding_ptr + b), position), tl.zeros((NODES,), tl.int32))
    stands = (u * q < tl.exp(logprob)) & drafted
    accepted = tl.min(tl.where(stands, NODES, node), axis=0)
    tl.store(accepted_ptr + b, accepted.to(tl.int64))

    rejected = accepted < tl.sum(drafted.to(tl.int32), axis=0)
    # What is subtracted from p: nothing, q, or everything at the token that was found.
    drawn_from = tl.where(rejected & (found == 0), V, 0)
    taken = at_column(node, accepted, tl.where(drafted, token, 0).to(tl.int32))
    taken = tl.where(rejected & (found > 0), taken, -1)
    log_sum = at_column(node, accepted, log_sums)
    threshold = at_column(node, accepted, thresholds)
    top = at_column(node, accepted, tops)
    key = position_key(tl.load(drawing_ptr + b), tl.load(drawing_positions_ptr + b * drawing_stride))
    logits_ptr += accepted.to(tl.int64) * column_stride
    q_ptr += accepted.to(tl.int64) * q_column_stride
    best = tl.full((), float("-inf"), tl.float32)
    drawn = tl.zeros((), tl.int32)
    # Without any token, or with a NaN among them, none is better below: the maximum of NaN and 0 is 0.
    drawn_logprob = tl.where(log_sum > float("-inf"), float("-inf"), float("nan"))
    for first in range(0, V, BLOCK):
        column = tl.arange(0, BLOCK)
        n = first + column
        s = scores_of(logits_ptr, n, n < V, temperature_ptr)
        logp = tl.where(kept(s, threshold, top, min_p), s - log_sum, float("-inf"))
        q_here = tl.load(q_ptr + n, mask=n < drawn_from, other=0.0)
        q_here = tl.where(n == taken, 1.0, q_here)
        residual = tl.maximum(tl.exp(logp) - q_here, 0.0)
        noisy = tl.where(n < V, tl.log(residual) + gumbel(key, n), float("-inf"))
        value, at_best = tl.max(noisy, axis=0, return_indices=True, return_indices_tie_break_left=True)
        better = value > best
        best = tl.where(better, value, best)
        drawn_logprob = tl.where(
            better, tl.sum(tl.where(column == at_best, logp, 0.0), axis=0), drawn_logprob
        )
        drawn = tl.where(better, first + at_best, drawn)

    out = b * (K + 1) + node
    earlier = node < accepted
    tl.store(columns_ptr + out, tl.minimum(node, accepted).to(tl.int64), mask=node_in)
    tl.store(tokens_ptr + out, tl.where(earlier, token, drawn.to(tl.int64)), mask=node_in)
    tl.store(logprobs_ptr + out, tl.where(earlier, logprob, drawn_logprob), mask=node_in)

"""The Triton kernels behind `accept` where there are filters: import this only where triton is installed.

A position's few candidates are found among the highest scores of groups of tokens; only the groups that hold
one are read again, and noise is made for candidates alone. Where these are more than MOST, thresholds are
bisected over the whole vocabulary, by one program a position.

The last program of a row to finish walks for the row. Only their count is atomic: it says who walks, never
what is computed, and the walk begins when all choices are there. So equal inputs give equal bits.
"""

import triton
import triton.language as tl

from selfspec_kernels.accept_kernels import walk
from selfspec_kernels.candidate_kernels import NOTHING, bound_of, list_candidates, list_groups, lowest_kept
from selfspec_kernels.noise_kernels import gumbel, position_key
from selfspec_kernels.overlap_kernels import allow_next, await_previous
from selfspec_kernels.score_kernels import kept, order, scores_of, threshold_of


@triton.jit(do_not_specialize=["m"])
def group_kernel(
    logits_ptr, temperature_ptr, highs_ptr, tops_ptr, masses_ptr, finished_ptr,
    m, V, groups, row_stride, column_stride, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The highest score of every group of GROUP tokens, and the log-sum-exp of a block, without filters.

    Position program_id(0) of [B, m], block program_id(1).

    Args:
        highs_ptr: [B, m, groups]
        tops_ptr, masses_ptr: [B, m, blocks] maximum t of the scores, sum of exp(score - t).
        finished_ptr: [B] int32, set to 0 for `filter_kernel`; None where no choice is needed.
    """
    row = tl.program_id(0)
    b = row // m
    logits_ptr += b.to(tl.int64) * row_stride + (row % m).to(tl.int64) * column_stride
    if finished_ptr is not None:
        tl.store(finished_ptr + b, 0, mask=(row % m == 0) & (tl.program_id(1) == 0))
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logit = tl.load(logits_ptr + n, mask=n < V, other=float("-inf")).to(tl.float32)
    # A quotient rises with its dividend: few of them need the exact division that `scores_of` makes.
    high = tl.max(tl.reshape(logit, (BLOCK // GROUP, GROUP)), axis=1)
    top = tl.max(high, axis=0)
    apart = logit - tl.where(top == float("-inf"), 0.0, top)
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + b)
        apart *= 1.0 / temperature
        high = tl.div_rn(high, tl.zeros(high.shape, tl.float32) + temperature)
    mass = tl.sum(tl.exp(apart), axis=0)
    out = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(tops_ptr + out, tl.max(high, axis=0))
    tl.store(masses_ptr + out, mass)
    g = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    tl.store(highs_ptr + row.to(tl.int64) * groups + g, high, mask=g < groups)


@triton.jit
def better_of(
    score, n, key, best, best_score, index, NOISY: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """The best so far, its score without noise and its token, after scores [SIZE] of tokens n."""
    noisy = tl.where(score == score, score, float("-inf"))
    if NOISY:
        noisy += gumbel(key, n)
    value, at = tl.max(noisy, axis=0, return_indices=True, return_indices_tie_break_left=True)
    hit = tl.arange(0, SIZE) == at
    better = value > best
    best_score = tl.where(better, tl.sum(tl.where(hit, score, 0.0), axis=0), best_score)
    index = tl.where(better, tl.sum(tl.where(hit, n, 0), axis=0), index)
    return tl.where(better, value, best), best_score, index


@triton.jit
def is_last(finished_ptr, m):
    """Whether all others of m programs have asked before: what they stored first is seen from here on."""
    tl.debug_barrier()  # what all threads have stored comes before the count, which is one thread's
    return tl.atomic_add(finished_ptr, 1, sem="acq_rel", scope="gpu") == m - 1


@triton.jit(
    do_not_specialize=["m", "depth", "draft_stride", "position_row_stride", "position_column_stride"],
    do_not_specialize_on_alignment=["draft_ptr"],
)
def filter_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, keys_ptr, positions_ptr,
    highs_ptr, tops_ptr, masses_ptr, found_ptr, candidates_ptr, scores_ptr, finished_ptr,
    m, V, groups, parts, row_stride, column_stride, position_row_stride, position_column_stride,
    thresholds_ptr, kept_tops_ptr, kept_masses_ptr, choices_ptr, choice_logprobs_ptr,
    draft_ptr, parents_ptr, accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr, depth, draft_stride,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, NODES: tl.constexpr, FEW: tl.constexpr,
    TOGETHER: tl.constexpr, CHUNK: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What passes the filters, and the best token of it: position program_id(0) of [B, m].

    Then the walk, by the last program of a row.

    Args:
        keys_ptr, positions_ptr: noise, see `noise.Noise`; None for none.
        highs_ptr, tops_ptr, masses_ptr: as `group_kernel` left them.
        found_ptr, candidates_ptr, scores_ptr: room [B, m, MOST] for groups, tokens and their scores.
        finished_ptr: [B] int32: programs of a row that have finished, 0 from `group_kernel`.
        thresholds_ptr: [B, m] int32: tokens in order above it are kept (min-p aside); None where not needed.
        kept_tops_ptr, kept_masses_ptr: [B, m] maximum t, and sum of exp(score - t) of what is kept.
        choices_ptr, choice_logprobs_ptr: room [B, m], int32 and fp32; None where no choice is needed.
        draft_ptr, ...: as for `walk`.
    """
    allow_next(PDL)
    await_previous(PDL)
    row = tl.program_id(0)
    b = row // m
    logits_ptr += b.to(tl.int64) * row_stride + (row % m).to(tl.int64) * column_stride
    if temperature_ptr is not None:
        temperature_ptr += b
    room = row.to(tl.int64) * MOST
    found_ptr += room
    candidates_ptr += room
    scores_ptr += room
    k = tl.zeros((), tl.int32)
    if top_k_ptr is not None:
        k = tl.load(top_k_ptr + b)
        k = tl.where((k > 0) & (k < V), k, 0)
    p = tl.full((), 1.0, tl.float32)
    if top_p_ptr is not None:
        p = tl.load(top_p_ptr + b)
    min_p = tl.zeros((), tl.float32)
    if min_p_ptr is not None:
        min_p = tl.load(min_p_ptr + b)
    key = tl.zeros((), tl.uint64)
    if keys_ptr is not None:
        position = tl.load(positions_ptr + b * position_row_stride + row % m * position_column_stride)
        key = position_key(tl.load(keys_ptr + b), position)

    part = tl.arange(0, PARTS)
    at = row.to(tl.int64) * parts + part
    tops = tl.load(tops_ptr + at, mask=part < parts, other=float("-inf"))
    top = tl.max(tops, axis=0)
    base = tl.where(top == float("-inf"), 0.0, top)
    every = tl.sum(tl.load(masses_ptr + at, mask=part < parts, other=0.0) * tl.exp(tops - base), axis=0)

    highs_ptr += row.to(tl.int64) * groups
    group = tl.arange(0, GROUPS)
    group_in = group < groups
    # A little more than p: sums in another order differ.
    bound = bound_of(highs_ptr, group, group_in, base, k, tl.where(p < 1.0, p * 1.00001, 2.0) * every, FEW)
    if (k == 0) & (p >= 1.0):
        bound = tl.maximum(NOTHING, order(base + tl.log(min_p) - 1e-3 - 1e-5 * tl.abs(base)))
    total = list_groups(highs_ptr, found_ptr, group, group_in, bound, MOST)
    if total <= MOST:
        total = list_candidates(
            logits_ptr, V, temperature_ptr, found_ptr, candidates_ptr, scores_ptr, total, bound,
            GROUP, TOGETHER, MOST,
        )  # fmt: skip

    best = tl.full((), float("-inf"), tl.float32)
    best_score = tl.full((), float("-inf"), tl.float32)
    index = tl.zeros((), tl.int32)
    mass = every * 0.0  # a NaN that was nowhere kept shows
    if total <= MOST:
        threshold = order(lowest_kept(scores_ptr, total, base, k, p, every, CHUNK)) - 1
        for first in range(0, total, CHUNK):
            i = first + tl.arange(0, CHUNK)
            score = tl.load(scores_ptr + i, mask=i < total, other=float("-inf"))
            score = tl.where(kept(score, threshold, base, min_p), score, float("-inf"))
            mass += tl.sum(tl.exp(score - base), axis=0)
            if choices_ptr is not None:
                n = tl.load(candidates_ptr + i, mask=i < total, other=0)
                best, best_score, index = better_of(
                    score, n, key, best, best_score, index, keys_ptr is not None, CHUNK
                )
    else:
        threshold = threshold_of(logits_ptr, V, temperature_ptr, base, k, p, every, BLOCK)
        for first in range(0, V, BLOCK):
            n = first + tl.arange(0, BLOCK)
            score = scores_of(logits_ptr, n, n < V, temperature_ptr)
            score = tl.where(kept(score, threshold, base, min_p), score, float("-inf"))
            mass += tl.sum(tl.exp(score - base), axis=0)
            if choices_ptr is not None:
                best, best_score, index = better_of(
                    score, n, key, best, best_score, index, keys_ptr is not None, BLOCK
                )
    if thresholds_ptr is not None:
        tl.store(thresholds_ptr + row, threshold)
        tl.store(kept_tops_ptr + row, top)
        tl.store(kept_masses_ptr + row, mass)
    if choices_ptr is not None:
        tl.store(choices_ptr + row, index)
        tl.store(choice_logprobs_ptr + row, best_score - top - tl.log(mass))
        if is_last(finished_ptr + b, m):
            node = tl.arange(0, NODES)
            choice = tl.load(choices_ptr + b * m + node, mask=node < m, other=0)
            logprob = tl.load(choice_logprobs_ptr + b * m + node, mask=node < m, other=0.0)
            walk(
                choice, logprob, b.to(tl.int64), draft_ptr, parents_ptr,
                accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr, m - 1, depth, draft_stride, NODES,
            )  # fmt: skip

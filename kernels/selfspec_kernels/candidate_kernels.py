"""Tokens that may pass a position's filters, inside Triton kernels: only where triton is installed.

A token passes top-k only if it is at least the k-th largest of the highest scores of groups of tokens, and is
in the nucleus only if it is above where these highest scores alone hold the mass.
"""

import triton
import triton.language as tl

from selfspec_kernels.score_kernels import LOWEST, order, scores_of

NOTHING = tl.constexpr(-2139095041)
"""The order of -inf."""


@triton.jit
def bound_of(highs_ptr, group, group_in, top, k, need, FEW: tl.constexpr):
    """An order such that the highest scores above it number k, or weigh `need` where k is 0.

    Not the largest such order: FEW groups, or a fourth more than there must be, are near enough. The order of
    -inf where all highest scores are too few.
    """
    high = tl.load(highs_ptr + group, mask=group_in, other=float("-inf"))
    ordered = tl.where(group_in, order(high), LOWEST)
    weight = tl.where(k > 0, 1.0, tl.exp(high - top))
    need = tl.where(k > 0, k.to(tl.float32), need)
    finite = ordered > NOTHING
    low = tl.min(tl.where(finite, ordered, 2147483647), axis=0) - 1
    low = tl.maximum(low, NOTHING)
    up = tl.max(ordered, axis=0)
    count = tl.sum(finite.to(tl.int32), axis=0)
    count_up = tl.zeros((), tl.int32)
    if tl.sum(tl.where(finite, weight, 0.0), axis=0) >= need:
        while (count > FEW) & (4 * (count - count_up) > count_up) & (up.to(tl.int64) - low > 1):
            middle = ((low.to(tl.int64) + up) >> 1).to(tl.int32)
            above = ordered > middle
            enough = tl.sum(tl.where(above, weight, 0.0), axis=0) >= need
            here = tl.sum(above.to(tl.int32), axis=0)
            low = tl.where(enough, middle, low)
            count = tl.where(enough, here, count)
            up = tl.where(enough, up, middle)
            count_up = tl.where(enough, count_up, here)
    else:
        low = tl.full((), NOTHING, tl.int32)
    return low


@triton.jit
def list_groups(highs_ptr, found_ptr, group, group_in, bound, MOST: tl.constexpr):
    """Writes down the groups with a score above the bound, ascending, up to MOST; returns their number."""
    high = tl.load(highs_ptr + group, mask=group_in, other=float("-inf"))
    above = ((order(high) > bound) & group_in).to(tl.int32)
    at = tl.cumsum(above, axis=0) - 1
    tl.store(found_ptr + at, group, mask=(above > 0) & (at < MOST))
    tl.debug_barrier()  # other threads of the program read it: a barrier orders global memory among them
    return tl.sum(above, axis=0)


@triton.jit
def list_candidates(
    row_ptr, V, temperature_ptr, found_ptr, tokens_ptr, scores_ptr, count, bound,
    GROUP: tl.constexpr, TOGETHER: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Writes down tokens above the bound and their scores, ascending, up to MOST; returns their number."""
    total = tl.zeros((), tl.int32)
    for first in range(0, count, TOGETHER):
        g = first + tl.arange(0, TOGETHER)
        found = tl.load(found_ptr + g, mask=g < count, other=0)
        n = found[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        inside = (g < count)[:, None] & (n < V)
        n = tl.reshape(n, (TOGETHER * GROUP,))
        inside = tl.reshape(inside, (TOGETHER * GROUP,))
        score = scores_of(row_ptr, n, inside, temperature_ptr)
        above = ((order(score) > bound) & inside).to(tl.int32)
        at = total + tl.cumsum(above, axis=0) - 1
        fits = (above > 0) & (at < MOST)
        tl.store(tokens_ptr + at, n, mask=fits)
        tl.store(scores_ptr + at, score, mask=fits)
        total += tl.sum(above, axis=0)
    tl.debug_barrier()  # as in `list_groups`
    return total


@triton.jit
def above_each(scores_ptr, count, score, top, CHUNK: tl.constexpr, STEP: tl.constexpr = 32):
    """For scores [CHUNK]: how many candidates are above each, and the sum of exp(score - top) of those."""
    rank = tl.zeros((CHUNK,), tl.int32)
    mass = tl.zeros((CHUNK,), tl.float32)
    for first in range(0, count, STEP):
        j = first + tl.arange(0, STEP)
        other = tl.load(scores_ptr + j, mask=j < count, other=float("-inf"))
        above = other[None, :] > score[:, None]
        rank += tl.sum(above.to(tl.int32), axis=1)
        mass += tl.sum(tl.where(above, tl.exp(other - top)[None, :], 0.0), axis=1)
    return rank, mass


@triton.jit
def lowest_kept(scores_ptr, count, top, k, p, mass, CHUNK: tl.constexpr):
    """The lowest candidate that passes top-k, then top-p; k and p are 0 and 1 where they set no limit.

    Whatever is above a candidate is one, so counts and masses above it are those of the whole vocabulary.
    """
    least = tl.full((), float("-inf"), tl.float32)
    if k > 0:
        least = tl.full((), float("inf"), tl.float32)
        mass = tl.zeros((), tl.float32)
        for first in range(0, count, CHUNK):
            i = first + tl.arange(0, CHUNK)
            score = tl.load(scores_ptr + i, mask=i < count, other=float("-inf"))
            rank, _ = above_each(scores_ptr, count, score, top, CHUNK)
            stays = (rank < k) & (i < count)
            least = tl.minimum(least, tl.min(tl.where(stays, score, float("inf")), axis=0))
            mass += tl.sum(tl.where(stays, tl.exp(score - top), 0.0), axis=0)
    if p < 1.0:
        within = least
        least = tl.full((), float("inf"), tl.float32)
        for first in range(0, count, CHUNK):
            i = first + tl.arange(0, CHUNK)
            score = tl.load(scores_ptr + i, mask=i < count, other=float("-inf"))
            rank, above = above_each(scores_ptr, count, score, top, CHUNK)
            stays = ((above < p * mass) | (rank == 0)) & (score >= within) & (i < count)
            least = tl.minimum(least, tl.min(tl.where(stays, score, float("inf")), axis=0))
    return least

"""Processed scores inside Triton kernels: temperature, top-k, top-p, min-p. Only where triton is installed.

A processed score is made from the logit each time anew: a division and a comparison are cheaper than a place
in memory. A filter is a threshold in the order of scores, so that every other kernel needs one number of it.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**31))
"""Below the order of every float."""


@triton.jit
def order(score):
    """int32 in the order of the floats; NaN above all."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0.0 + 0.0 is 0.0: they are equal
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def scores_of(row_ptr, n, inside, temperature_ptr):
    """Logits / temperature of tokens n in fp32, -inf where not inside; temperature_ptr is the row's own."""
    scores = tl.load(row_ptr + n, mask=inside, other=float("-inf")).to(tl.float32)
    if temperature_ptr is not None:
        scores = tl.div_rn(scores, tl.zeros(scores.shape, tl.float32) + tl.load(temperature_ptr))
    return scores


@triton.jit
def kept(score, threshold, top, min_p):
    """Whether scores pass the filters."""
    return (order(score) > threshold) & (tl.exp(score - top) >= min_p)


@triton.jit
def weigh(row_ptr, V, temperature_ptr, top, threshold, BLOCK: tl.constexpr):
    """How many scores lie above the threshold, and the sum of exp(score - top) of those.

    And the scores around it: the order of the lowest above it, and of the highest that is not.
    """
    count = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    over = tl.full((BLOCK,), 2147483647, tl.int32)
    under = tl.full((BLOCK,), LOWEST, tl.int32)
    for first in range(0, V, BLOCK):
        n = first + tl.arange(0, BLOCK)
        score = scores_of(row_ptr, n, n < V, temperature_ptr)
        ordered = tl.where(n < V, order(score), LOWEST)
        above = ordered > threshold
        count += above.to(tl.int32)
        mass += tl.where(above, tl.exp(score - top), 0.0)
        over = tl.minimum(over, tl.where(above, ordered, 2147483647))
        under = tl.maximum(under, tl.where(above, LOWEST, ordered))
    return tl.sum(count, axis=0), tl.sum(mass, axis=0), tl.min(over, axis=0), tl.max(under, axis=0)


@triton.jit
def bisect(
    row_ptr, V, temperature_ptr, top, low, count_low, need, BY_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """The highest threshold above which scores still weigh `need`; `low` is one, with count_low above it.

    By count it lets k scores pass (more where they equal the k-th), by mass those of the nucleus. Bisects the
    int32 order of floats between scores that occur, until what passes is known: k scores, or one score alone
    between the bounds.
    """
    high = order(top)
    count_high = tl.zeros((), tl.int32)
    left = count_low - 1 if BY_MASS else count_low - need
    while (high.to(tl.int64) - low > 1) & (left > 0):
        middle = ((low.to(tl.int64) + high) >> 1).to(tl.int32)
        count, mass, over, under = weigh(row_ptr, V, temperature_ptr, top, middle, BLOCK)
        enough = mass >= need if BY_MASS else count >= need
        low = tl.where(enough, over - 1, low)
        count_low = tl.where(enough, count, count_low)
        high = tl.where(enough, high, under)
        count_high = tl.where(enough, count_high, count)
        left = count_low - count_high - 1 if BY_MASS else count_low - need
    return low, count_low


@triton.jit
def threshold_of(row_ptr, V, temperature_ptr, top, k, p, mass, BLOCK: tl.constexpr):
    """Scores whose order is above this pass top-k, then top-p: 0 and 1 for no limit. `mass`: of all."""
    threshold = tl.full((), LOWEST, tl.int32)
    count = tl.zeros((), tl.int32) + V
    if k > 0:
        threshold, count = bisect(row_ptr, V, temperature_ptr, top, threshold, count, k, False, BLOCK)
    if p < 1.0:
        if k > 0:
            _, mass, _, _ = weigh(row_ptr, V, temperature_ptr, top, threshold, BLOCK)
        threshold, _ = bisect(row_ptr, V, temperature_ptr, top, threshold, count, p * mass, True, BLOCK)
    return threshold

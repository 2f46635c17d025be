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
def highest_of(row_ptr, V, temperature_ptr, BLOCK: tl.constexpr):
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, V, BLOCK):
        n = first + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, scores_of(row_ptr, n, n < V, temperature_ptr))
    return tl.max(highest, axis=0)


@triton.jit
def weight_above(row_ptr, V, temperature_ptr, top, threshold, BLOCK: tl.constexpr):
    """How many scores lie above the threshold, and the sum of exp(score - top) of those."""
    count = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        n = first + tl.arange(0, BLOCK)
        score = scores_of(row_ptr, n, n < V, temperature_ptr)
        above = (order(score) > threshold) & (n < V)
        count += above.to(tl.int32)
        mass += tl.where(above, tl.exp(score - top), 0.0)
    return tl.sum(count, axis=0), tl.sum(mass, axis=0)


@triton.jit
def bisect(row_ptr, V, temperature_ptr, top, low, need, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The highest threshold above which scores still weigh `need`; `low` is one.

    By count it lets k scores pass (more where they equal the k-th), by mass those of the nucleus. Bisects the
    int32 order of floats, until what passes is known: k scores, or one alone between the bounds.
    """
    high = order(top)
    count_low, _ = weight_above(row_ptr, V, temperature_ptr, top, low, BLOCK)
    count_high = tl.zeros((), tl.int32)
    left = count_low - 1 if BY_MASS else count_low - need
    while (high.to(tl.int64) - low > 1) & (left > 0):
        middle = ((low.to(tl.int64) + high) >> 1).to(tl.int32)
        count, mass = weight_above(row_ptr, V, temperature_ptr, top, middle, BLOCK)
        enough = mass >= need if BY_MASS else count >= need
        low = tl.where(enough, middle, low)
        count_low = tl.where(enough, count, count_low)
        high = tl.where(enough, high, middle)
        count_high = tl.where(enough, count_high, count)
        left = count_low - count_high - 1 if BY_MASS else count_low - need
    return low


@triton.jit
def threshold_of(row_ptr, V, temperature_ptr, top, top_k_ptr, top_p_ptr, b, BLOCK: tl.constexpr):
    """Scores whose order is above this pass top-k, then top-p."""
    threshold = tl.full((), LOWEST, tl.int32)
    if top_k_ptr is not None:
        k = tl.load(top_k_ptr + b)
        if (k > 0) & (k < V):
            threshold = bisect(row_ptr, V, temperature_ptr, top, threshold, k, False, BLOCK)
    if top_p_ptr is not None:
        p = tl.load(top_p_ptr + b)
        if p < 1.0:
            _, mass = weight_above(row_ptr, V, temperature_ptr, top, threshold, BLOCK)
            threshold = bisect(row_ptr, V, temperature_ptr, top, threshold, p * mass, True, BLOCK)
    return threshold

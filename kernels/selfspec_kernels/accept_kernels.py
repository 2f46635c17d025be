"""The Triton kernels behind `accept`: import this only where triton is installed.

Nothing is atomic: equal inputs give equal bits.
"""

import triton
import triton.language as tl

from selfspec_kernels.noise_kernels import STEP, gumbel, noise_bits, position_key
from selfspec_kernels.overlap_kernels import allow_next, await_previous
from selfspec_kernels.score_kernels import scores_of

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def quotient(logit, temperature_ptr):
    """One logit's score."""
    if temperature_ptr is not None:
        logit = tl.div_rn(logit, tl.load(temperature_ptr))
    return logit


@triton.jit
def score_of(logit_ptr, temperature_ptr):
    """The score of the one token there."""
    return quotient(tl.load(logit_ptr).to(tl.float32), temperature_ptr)


@triton.jit
def lowest(hit, column, BLOCK: tl.constexpr):
    """The lowest column that is hit; 0 where none is."""
    at = tl.min(tl.where(hit, column, BLOCK), axis=0)
    return tl.where(at < BLOCK, at, 0)


@triton.jit
def best_with_noise(
    logits_ptr, V, temperature_ptr, logit, apart, top, key, first, BLOCK: tl.constexpr, PIECE: tl.constexpr
):  # fmt: skip
    """The largest score + noise of a block, and its column; `apart` is log2(e) * (score - top).

    The noise is -log(E) with E = -log(1 - u) >= u + u^2 / 2, so the token with the least
    (u + u^2 / 2) * exp(top - score) is the likeliest winner, and its exact value a bar that few others may
    reach. Only where one may, logarithms are taken of all, anew and in steps: registers are for the rest.
    """
    column = tl.arange(0, BLOCK)
    u = tl.fma(noise_bits(key, first + column).to(tl.float32), STEP, 0.5 * STEP)
    least = tl.fma(u * u, 0.5, u) * tl.exp2(-apart)
    # Positive floats, then NaN, are in the order of their bits: the lowest ones make way for the column.
    ranked = (least.to(tl.int32, bitcast=True) & (0x7FFFFFFF & -BLOCK)) | column
    # Where all is NaN, the first place behind the vocabulary would be the least.
    at = tl.minimum(tl.min(ranked, axis=0) & (BLOCK - 1), V - 1 - first)
    value = score_of(logits_ptr + first + at, temperature_ptr) + gumbel(key, first + at)
    value = tl.where(value == value, value, float("-inf"))
    # Above what rounding does to either side.
    bar = tl.exp(top - value) * (1.0 + 1e-4 + 1e-6 * tl.abs(value))
    if (tl.sum((least <= bar).to(tl.int32), axis=0) > 1) & (top > float("-inf")):
        value = tl.full((), float("-inf"), tl.float32)
        for start in range(0, BLOCK, PIECE):
            n = first + start + tl.arange(0, PIECE)
            score = scores_of(logits_ptr, n, n < V, temperature_ptr)
            noisy = tl.where(score == score, score + gumbel(key, n), float("-inf"))
            here, place = tl.max(noisy, axis=0, return_indices=True, return_indices_tie_break_left=True)
            at = tl.where(here > value, start + place, at)
            value = tl.maximum(value, here)
    return value, at


@triton.jit(do_not_specialize=["m", "position_row_stride", "position_column_stride"])
def choice_kernel(
    logits_ptr, temperature_ptr, keys_ptr, positions_ptr,
    values_ptr, scores_ptr, indices_ptr, tops_ptr, masses_ptr,
    m, V, row_stride, column_stride, position_row_stride, position_column_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """The best token of a part of the vocabulary, and that part's log-sum-exp.

    Position program_id(0) of [B, m], part program_id(1), BLOCK tokens each. Filters: see `filter_kernels`.

    Args:
        keys_ptr, positions_ptr: noise, see `noise.Noise`; None for none.
        values_ptr, scores_ptr, indices_ptr: [B, m, parts] of the best token: score with noise, and without,
            token; None where no choice is needed.
        tops_ptr, masses_ptr: [B, m, parts] maximum t of the scores, sum of exp(score - t).
    """
    row = tl.program_id(0)
    b = row // m
    logits_ptr += b.to(tl.int64) * row_stride + (row % m).to(tl.int64) * column_stride
    if temperature_ptr is not None:
        temperature_ptr += b
    first = tl.program_id(1) * BLOCK
    column = tl.arange(0, BLOCK)
    logit = tl.load(logits_ptr + first + column, mask=first + column < V, other=float("-inf")).to(tl.float32)
    highest = tl.max(logit, axis=0)
    top = quotient(highest, temperature_ptr)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    scale = LOG2_E
    if temperature_ptr is not None:
        scale = LOG2_E / tl.load(temperature_ptr)
    # Scores of tokens are quotients, too, but an exact division is made for those that may be chosen alone.
    apart = (logit - base) * scale
    out = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(tops_ptr + out, top)
    tl.store(masses_ptr + out, tl.sum(tl.exp2(apart), axis=0))
    if values_ptr is not None:
        if keys_ptr is not None:
            position = tl.load(positions_ptr + b * position_row_stride + row % m * position_column_stride)
            key = position_key(tl.load(keys_ptr + b), position)
            value, at = best_with_noise(
                logits_ptr, V, temperature_ptr, logit, apart, top, key, first, BLOCK, BLOCK // 4
            )  # fmt: skip
        else:
            score = logit
            if temperature_ptr is not None:
                score = tl.div_rn(logit, tl.zeros(logit.shape, tl.float32) + tl.load(temperature_ptr))
            at = lowest(score == top, column, BLOCK)
            value = top
        tl.store(values_ptr + out, value)
        tl.store(scores_ptr + out, score_of(logits_ptr + first + at, temperature_ptr))
        tl.store(indices_ptr + out, first + at)


@triton.jit
def log_sum_of(tops_ptr, masses_ptr, at, inside):
    """Log-sum-exp [NODES] of parts [NODES, PARTS]."""
    top = tl.load(tops_ptr + at, mask=inside, other=float("-inf"))
    mass = tl.load(masses_ptr + at, mask=inside, other=0.0)
    highest = tl.max(top, axis=1)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    return highest + tl.log(tl.sum(mass * tl.exp(top - base[:, None]), axis=1))


@triton.jit
def at_column(node, column, values):
    """values [NODES] at one column."""
    return tl.sum(tl.where(node == column, values, 0), axis=0)


@triton.jit
def walk(
    choice, logprob, b, draft_ptr, parents_ptr, accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr,
    n, depth, draft_stride, NODES: tl.constexpr,
):  # fmt: skip
    """From the root to the deepest candidate that stands, row b in int64.

    Args:
        choice, logprob: [NODES] of the row, int32 and fp32.
        draft_ptr: [B, n] int64; n may be 0.
        parents_ptr: [n] int32, or None for a chain.
        NODES: covers n + 1.
    """
    if parents_ptr is None:
        _walk_chain(
            choice, logprob, b, draft_ptr, accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr,
            n, draft_stride, NODES,
        )  # fmt: skip
    else:
        _walk_tree(
            choice, logprob, b, draft_ptr, parents_ptr, accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr,
            n, depth, draft_stride, NODES,
        )  # fmt: skip


@triton.jit
def _walk_chain(
    choice, logprob, b, draft_ptr, accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr,
    n, draft_stride, NODES: tl.constexpr,
):  # fmt: skip
    """It ends at the first node whose choice is not the candidate behind it."""
    node = tl.arange(0, NODES)
    token = tl.load(draft_ptr + b * draft_stride + node, mask=node < n, other=-1).to(tl.int32)
    stands = (token == choice) & (node < n)
    accepted = tl.min(tl.where(stands, NODES, node), axis=0)
    tl.store(accepted_ptr + b, accepted.to(tl.int64))
    out = b * (n + 1) + node
    earlier = node < accepted
    token = tl.where(earlier, choice, at_column(node, accepted, choice))
    tl.store(columns_ptr + out, tl.minimum(node, accepted).to(tl.int64), mask=node <= n)
    tl.store(tokens_ptr + out, token.to(tl.int64), mask=node <= n)
    logprob = tl.where(earlier, logprob, at_column(node, accepted, logprob))
    tl.store(logprobs_ptr + out, logprob, mask=node <= n)


@triton.jit
def _walk_tree(
    choice, logprob, b, draft_ptr, parents_ptr, accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr,
    n, depth, draft_stride, NODES: tl.constexpr,
):  # fmt: skip
    """Level by level, and back for the columns."""
    node = tl.arange(0, NODES)
    candidate = (node > 0) & (node <= n)
    parent = tl.load(parents_ptr + node - 1, mask=candidate, other=-1)
    token = tl.load(draft_ptr + b * draft_stride + node - 1, mask=candidate, other=-1).to(tl.int32)
    child = (parent[:, None] == node[None, :]) & candidate[:, None]
    choice_before = tl.sum(tl.where(child, choice[None, :], 0), axis=1)
    match = child & (token == choice_before)[:, None]
    reached = (node == 0).to(tl.int32)
    accepted = tl.zeros((), tl.int32)
    column = tl.zeros((), tl.int32)
    for level in range(1, depth + 1):
        reached = tl.max(tl.where(match, reached[None, :], 0), axis=1)
        some = tl.max(reached, axis=0) > 0
        accepted = tl.where(some, level, accepted)
        column = tl.where(some, tl.min(tl.where(reached > 0, node, NODES), axis=0), column)
    tl.store(accepted_ptr + b, accepted.to(tl.int64))
    for back in range(depth + 1):
        step = depth - back
        at_step = b * (depth + 1) + step
        tl.store(columns_ptr + at_step, column.to(tl.int64))
        tl.store(tokens_ptr + at_step, at_column(node, column, choice).to(tl.int64))
        tl.store(logprobs_ptr + at_step, at_column(node, column, logprob))
        column = tl.where((step <= accepted) & (step > 0), at_column(node, column, parent), column)


@triton.jit(do_not_specialize=["n", "depth", "draft_stride"], do_not_specialize_on_alignment=["draft_ptr"])
def walk_kernel(
    values_ptr, scores_ptr, indices_ptr, tops_ptr, masses_ptr, draft_ptr, parents_ptr,
    accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr, n, depth, parts, draft_stride,
    NODES: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The choices of row program_id(0) from their parts, and the walk over them.

    Args:
        values_ptr, ...: as `choice_kernel` left them; where values_ptr is None, indices_ptr [B, n+1] are the
            choices and scores_ptr their log-probabilities.
        draft_ptr, ...: as for `walk`.
        NODES, PARTS: cover n + 1 and parts.
    """
    allow_next(PDL)
    await_previous(PDL)
    b = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, NODES)
    node_in = node <= n
    out = b * (n + 1) + node
    if values_ptr is None:
        choice = tl.load(indices_ptr + out, mask=node_in, other=0).to(tl.int32)
        logprob = tl.load(scores_ptr + out, mask=node_in, other=0.0)
    else:
        part = tl.arange(0, PARTS)
        at = out[:, None] * parts + part[None, :]
        inside = node_in[:, None] & (part < parts)[None, :]
        value = tl.load(values_ptr + at, mask=inside, other=float("-inf"))
        _, best = tl.max(value, axis=1, return_indices=True, return_indices_tie_break_left=True)
        hit = (part[None, :] == best[:, None]) & inside
        choice = tl.sum(tl.where(hit, tl.load(indices_ptr + at, mask=inside, other=0), 0), axis=1)
        score = tl.sum(tl.where(hit, tl.load(scores_ptr + at, mask=inside, other=0.0), 0.0), axis=1)
        logprob = score - log_sum_of(tops_ptr, masses_ptr, at, inside)
    walk(
        choice, logprob, b, draft_ptr, parents_ptr, accepted_ptr, tokens_ptr, logprobs_ptr, columns_ptr,
        n, depth, draft_stride, NODES,
    )  # fmt: skip

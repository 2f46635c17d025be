"""How `accept_rejection` is cut into Triton programs: import this only where triton is installed."""

from torch import Tensor

from selfspec_kernels.accept_launch import Parts, sum_up
from selfspec_kernels.accept_reference import Accepted, Sampling
from selfspec_kernels.filter_launch import CUT, Cut, passing
from selfspec_kernels.launching import all_registers, on, options
from selfspec_kernels.noise import Noise
from selfspec_kernels.rejection_kernels import rejection_kernel
from selfspec_kernels.verdict_launch import covering, empty_verdict

BLOCK = 4096
"""Tokens at a time."""
WARPS = 16
OPTIONS = options(WARPS) | all_registers(WARPS)


def reject(
    logits: Tensor,
    draft: Tensor,
    q: Tensor,
    sampling: Sampling,
    deciding: Noise,
    drawing: Noise,
    found: Tensor | None,
    block: int = BLOCK,
    cut: Cut = CUT,
) -> Accepted:
    """`accept_rejection` for checked inputs."""
    rows, nodes, vocabulary = logits.shape
    out = empty_verdict(rows, nodes, logits.device)
    with on(logits.device):
        thresholds = None
        if sampling.filters:
            kept = passing(logits, sampling, cut)
            thresholds, parts = kept.thresholds, Parts(tops=kept.tops, masses=kept.masses)
        else:
            parts = sum_up(logits, sampling.temperature, None, block, choose=False)
        if rows:
            rejection_kernel[(rows,)](
                logits, parts.tops, parts.masses, thresholds, sampling.temperature, sampling.min_p,
                draft, q, found, deciding.keys, deciding.positions, drawing.keys, drawing.positions,
                out.accepted, out.tokens, out.logprobs, out.columns,
                nodes - 1, vocabulary, parts.count, *logits.stride()[:2], draft.stride(0), *q.stride()[:2],
                *deciding.positions.stride(), drawing.positions.stride(0),
                **covering(nodes, parts.count), BLOCK=block, **OPTIONS,
            )  # fmt: skip
    return out

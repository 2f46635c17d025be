"""How acceptance is cut into Triton programs: import this only where triton is installed."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels import filter_launch
from selfspec_kernels.accept_kernels import choice_kernel, walk_kernel
from selfspec_kernels.accept_reference import Accepted, Sampling
from selfspec_kernels.filter_launch import CUT, Cut
from selfspec_kernels.launching import all_registers, on, options, pdl_of, processors
from selfspec_kernels.noise import Noise
from selfspec_kernels.verdict_launch import check_programs, covering, empty_verdict

BLOCKS = (2048, 4096)
"""Tokens of a program: the larger, which spends fewer instructions on each, where it keeps the GPU busy."""
WARPS = 4
_BUSY = 4
"""Programs a multiprocessor."""


@dataclass(frozen=True)
class Parts:
    """What `choice_kernel` leaves behind, [B, m, parts] each; see there."""

    values: Tensor | None = None
    scores: Tensor | None = None
    indices: Tensor | None = None
    tops: Tensor | None = None
    masses: Tensor | None = None
    count: int = 1


def accept(
    logits: Tensor,
    draft: Tensor,
    sampling: Sampling,
    noise: Noise | None,
    parents: Tensor | None,
    depth: int,
    block: int | None = None,
    cut: Cut = CUT,
) -> Accepted:
    """`accept` for checked inputs."""
    with on(logits.device):
        if sampling.filters:
            return filter_launch.accept(logits, draft, sampling, noise, parents, depth, cut)
        parts = sum_up(logits, sampling.temperature, noise, block, choose=True)
        return _walk(parts, draft, parents, depth)


def walk(choices: Tensor, logprobs: Tensor, draft: Tensor, parents: Tensor | None, depth: int) -> Accepted:
    """`accept_choices` for checked inputs."""
    with on(choices.device):
        return _walk(Parts(scores=logprobs, indices=choices), draft, parents, depth)


def walk_options(nodes: int, parts: int, tree: bool, pdl: bool) -> dict[str, Any]:
    """Warps for a matrix of nodes by parts, and of a tree's nodes by nodes; one alone waits for no other."""
    size = nodes * max(parts, nodes if tree else 1)
    if size <= 512:
        return options(1, pdl)
    return options(4, pdl) if size <= 2048 else options(8, pdl) | all_registers(8)


def sum_up(
    logits: Tensor, temperature: Tensor | None, noise: Noise | None, block: int | None, choose: bool
) -> Parts:
    """What `choice_kernel` leaves of logits [B, m, V]; without `choose`, no choices."""
    rows, nodes, vocabulary = logits.shape
    if block is None:
        programs = rows * nodes * triton.cdiv(vocabulary, BLOCKS[1])
        block = BLOCKS[programs >= _BUSY * processors(logits.device)]
    count = triton.cdiv(vocabulary, block)
    check_programs("a vocabulary of", vocabulary, count)

    def part(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(rows, nodes, count, dtype=dtype, device=logits.device)

    parts = Parts(
        values=part() if choose else None,
        scores=part() if choose else None,
        indices=part(torch.int32) if choose else None,
        tops=part(),
        masses=part(),
        count=count,
    )
    if rows:
        choice_kernel[rows * nodes, count](
            logits, temperature, noise.keys if noise else None, noise.positions if noise else None,
            parts.values, parts.scores, parts.indices, parts.tops, parts.masses,
            nodes, vocabulary, *logits.stride()[:2], *(noise.positions.stride() if noise else (0, 0)),
            BLOCK=block, **options(WARPS),
        )  # fmt: skip
    return parts


def _walk(parts: Parts, draft: Tensor, parents: Tensor | None, depth: int) -> Accepted:
    rows, candidates = draft.shape
    out = empty_verdict(rows, depth + 1, draft.device)
    if rows:
        sizes = covering(candidates + 1, parts.count)
        walk_kernel[(rows,)](
            parts.values, parts.scores, parts.indices, parts.tops, parts.masses, draft, parents,
            out.accepted, out.tokens, out.logprobs, out.columns,
            candidates, depth, parts.count, draft.stride(0),
            **sizes,
            **walk_options(sizes["NODES"], sizes["PARTS"], parents is not None, pdl_of(draft.device)),
        )  # fmt: skip
    return out

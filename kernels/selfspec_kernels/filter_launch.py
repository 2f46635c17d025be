"""How filters are cut into Triton programs: import this only where triton is installed."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.accept import Accepted, Sampling
from selfspec_kernels.filter_kernels import filter_kernel, group_kernel
from selfspec_kernels.launching import all_registers, options
from selfspec_kernels.noise import Noise

_MOST_GROUPS = 4096


@dataclass(frozen=True)
class Cut:
    """How a vocabulary is cut; powers of two, all in tokens but for what says otherwise."""

    block: int = 2048
    """Of a program of `group_kernel`, and of every step through the vocabulary."""
    group: int = 64
    """Of which the highest score is kept; a 128-byte line of bf16."""
    few: int = 64
    """Groups that need no closer look."""
    together: int = 32
    """Groups that are read again at a time."""
    chunk: int = 128
    """Candidates compared with as many at a time."""
    most: int = 1024
    """Candidates, and groups that hold any, up to which a position is fast."""
    warps: int = 16
    """Of `filter_kernel`."""
    group_warps: int = 4
    """Of `group_kernel`."""


CUT = Cut()


@dataclass(frozen=True)
class Filtered:
    """What `filter_kernel` leaves behind, see there."""

    choices: Tensor | None
    """[B, m] int64"""
    logprobs: Tensor | None
    """[B, m] fp32"""
    verdict: Accepted | None
    """Where nothing was drafted, the whole of it."""
    thresholds: Tensor | None
    """[B, m] int32"""
    tops: Tensor | None
    """[B, m, 1] fp32"""
    masses: Tensor | None
    """[B, m, 1] fp32"""


def filter_options(cut: Cut) -> dict[str, Any]:
    """Of `filter_kernel`."""
    return options(cut.warps) | all_registers(cut.warps)


def constants(cut: Cut, vocabulary: int) -> dict[str, int]:
    """The compile-time arguments of `filter_kernel`."""
    # So many groups that a program holds the highest scores of all in registers.
    group = max(cut.group, triton.next_power_of_2(triton.cdiv(vocabulary, _MOST_GROUPS)))
    block = max(cut.block, group)
    return {
        "GROUP": group,
        "GROUPS": triton.next_power_of_2(triton.cdiv(vocabulary, group)),
        "PARTS": triton.next_power_of_2(triton.cdiv(vocabulary, block)),
        "FEW": cut.few,
        "TOGETHER": max(1, cut.together * cut.group // group),
        "CHUNK": cut.chunk,
        "MOST": cut.most,
        "BLOCK": block,
    }


def filtered(logits: Tensor, sampling: Sampling, noise: Noise | None, choose: bool, cut: Cut) -> Filtered:
    """Choices from logits [B, m, V]; without `choose`, what tells which tokens are kept."""
    rows, nodes, vocabulary = logits.shape
    sizes = constants(cut, vocabulary)
    group, block = sizes["GROUP"], sizes["BLOCK"]
    groups, parts = triton.cdiv(vocabulary, group), triton.cdiv(vocabulary, block)

    def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(rows, *shape, dtype=dtype, device=logits.device)

    highs, tops, masses = room(nodes, groups), room(nodes, parts), room(nodes, parts)
    choices = room(nodes, dtype=torch.int64) if choose else None
    logprobs = room(nodes) if choose else None
    verdict = None
    if choices is not None and logprobs is not None and nodes == 1:
        verdict = Accepted(room(dtype=torch.int64), choices, logprobs, room(1, dtype=torch.int64))
    out = Filtered(
        choices,
        logprobs,
        verdict,
        thresholds=None if choose else room(nodes, dtype=torch.int32),
        tops=None if choose else room(nodes, 1),
        masses=None if choose else room(nodes, 1),
    )
    if rows:
        strides = logits.stride()[:2]
        group_kernel[rows * nodes, parts](
            logits, sampling.temperature, highs, tops, masses, nodes, vocabulary, groups, *strides,
            GROUP=group, BLOCK=block, **options(cut.group_warps),
        )  # fmt: skip
        filter_kernel[(rows * nodes,)](
            logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p,
            noise.keys if noise else None, noise.positions if noise else None, highs, tops, masses,
            room(nodes, cut.most, dtype=torch.int32), room(nodes, cut.most, dtype=torch.int32),
            room(nodes, cut.most),
            choices, logprobs, verdict.accepted if verdict else None, verdict.columns if verdict else None,
            out.thresholds, out.tops, out.masses,
            nodes, vocabulary, groups, parts, *strides, *(noise.positions.stride() if noise else (0, 0)),
            **sizes, **filter_options(cut),
        )  # fmt: skip
    return out

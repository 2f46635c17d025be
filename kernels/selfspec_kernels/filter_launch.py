"""How filters are cut into Triton programs: import this only where triton is installed."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.accept_reference import Accepted, Sampling
from selfspec_kernels.filter_kernels import filter_kernel, group_kernel
from selfspec_kernels.launching import all_registers, options, pdl_of
from selfspec_kernels.noise import Noise
from selfspec_kernels.verdict_launch import covering, empty_verdict

_MOST_GROUPS = 4096
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("thresholds_ptr", "kept_tops_ptr", "kept_masses_ptr")),
    **dict.fromkeys(("choices_ptr", "choice_logprobs_ptr", "draft_ptr", "parents_ptr")),
    **dict.fromkeys(("accepted_ptr", "tokens_ptr", "logprobs_ptr", "columns_ptr")),
    "depth": 0,
    "draft_stride": 0,
}
"""Arguments of `filter_kernel` for what it need not do."""


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
class Passing:
    """What tells which tokens pass, see `filter_kernel`."""

    thresholds: Tensor
    """[B, m] int32"""
    tops: Tensor
    """[B, m, 1] fp32"""
    masses: Tensor
    """[B, m, 1] fp32"""


def filter_options(cut: Cut, pdl: bool) -> dict[str, Any]:
    """Of `filter_kernel`."""
    return options(cut.warps, pdl) | all_registers(cut.warps)


def constants(cut: Cut, vocabulary: int, nodes: int) -> dict[str, int]:
    """The compile-time arguments of `filter_kernel`."""
    # So many groups that a program holds the highest scores of all in registers.
    group = max(cut.group, triton.next_power_of_2(triton.cdiv(vocabulary, _MOST_GROUPS)))
    block = max(cut.block, group)
    return {
        "GROUP": group,
        "GROUPS": triton.next_power_of_2(triton.cdiv(vocabulary, group)),
        **covering(nodes, triton.cdiv(vocabulary, block)),
        "FEW": cut.few,
        "TOGETHER": max(1, cut.together * cut.group // group),
        "CHUNK": cut.chunk,
        "MOST": cut.most,
        "BLOCK": block,
    }


def accept(
    logits: Tensor,
    draft: Tensor,
    sampling: Sampling,
    noise: Noise | None,
    parents: Tensor | None,
    depth: int,
    cut: Cut,
) -> Accepted:
    """`accept` for checked inputs with filters."""
    rows, device = len(draft), draft.device
    out = empty_verdict(rows, depth + 1, device)
    _launch(
        logits,
        sampling,
        noise,
        cut,
        finished=torch.empty(rows, dtype=torch.int32, device=device),
        choices_ptr=torch.empty(logits.shape[:2], dtype=torch.int32, device=device),
        choice_logprobs_ptr=torch.empty(logits.shape[:2], device=device),
        draft_ptr=draft,
        parents_ptr=parents,
        accepted_ptr=out.accepted,
        tokens_ptr=out.tokens,
        logprobs_ptr=out.logprobs,
        columns_ptr=out.columns,
        depth=depth,
        draft_stride=draft.stride(0),
    )
    return out


def passing(logits: Tensor, sampling: Sampling, cut: Cut) -> Passing:
    """What passes the filters, of logits [B, m, V]."""
    rows, nodes, device = *logits.shape[:2], logits.device
    out = Passing(
        torch.empty(rows, nodes, dtype=torch.int32, device=device),
        torch.empty(rows, nodes, 1, device=device),
        torch.empty(rows, nodes, 1, device=device),
    )
    _launch(
        logits,
        sampling,
        None,
        cut,
        thresholds_ptr=out.thresholds,
        kept_tops_ptr=out.tops,
        kept_masses_ptr=out.masses,
    )
    return out


def _launch(
    logits: Tensor,
    sampling: Sampling,
    noise: Noise | None,
    cut: Cut,
    finished: Tensor | None = None,
    **given: Any,
) -> None:
    """Both kernels; `given`: what `filter_kernel` is to do, by the names of its arguments."""
    rows, nodes, vocabulary = logits.shape
    if not rows:
        return
    sizes = constants(cut, vocabulary, nodes)
    group, block = sizes["GROUP"], sizes["BLOCK"]
    groups, parts = triton.cdiv(vocabulary, group), triton.cdiv(vocabulary, block)
    strides = logits.stride()[:2]

    def room(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(rows, nodes, size, dtype=dtype, device=logits.device)

    highs, tops, masses = room(groups), room(parts), room(parts)
    group_kernel[rows * nodes, parts](
        logits, sampling.temperature, highs, tops, masses, finished, nodes, vocabulary, groups, *strides,
        GROUP=group, BLOCK=block, **options(cut.group_warps),
    )  # fmt: skip
    filter_kernel[(rows * nodes,)](
        logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p,
        noise.keys if noise else None, noise.positions if noise else None, highs, tops, masses,
        room(cut.most, torch.int32), room(cut.most, torch.int32), room(cut.most), finished,
        nodes, vocabulary, groups, parts, *strides, *(noise.positions.stride() if noise else (0, 0)),
        **_NOTHING | given, **sizes, **filter_options(cut, pdl_of(logits.device)),
    )  # fmt: skip

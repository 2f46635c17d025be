"""What `commit` writes to, the checks of its inputs, and the same in plain PyTorch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec_kernels.accept_reference import MOST_NODES, Accepted
from selfspec_kernels.backend import KernelInputError, check, check_together

ROUNDS, DRAFTED, ACCEPTED, REJECTED, TOKENS = range(5)
"""Columns of `RowState.counters`, in the words of `Stats`."""
COUNTERS = 5
MOST_END_TOKENS = 64


@dataclass(frozen=True)
class RowState:
    """What a call knows of its rows, on the device; written in place."""

    sequences: Tensor
    """[B, W] int64, rows may lie apart: committed tokens, scratch behind them."""
    lengths: Tensor
    """[B] int64: columns of `sequences` that are committed."""
    limits: Tensor
    """[B] int64: the length at which a row is finished, at most W."""
    finished: Tensor
    """[B] bool"""
    counters: Tensor
    """[B, 5] int64: rounds, drafted, accepted, rejected, tokens."""
    end_tokens: Tensor
    """[n] int64: tokens that finish a row."""


def reference_commit(rows: RowState, verdict: Accepted, drafted: Tensor, deepest: Tensor) -> None:
    """`commit` in plain PyTorch."""
    new = verdict.tokens
    step = torch.arange(new.shape[1], device=new.device)
    room = (rows.limits - rows.lengths)[:, None]
    offered = (step <= verdict.accepted[:, None]) & (step < room) & ~rows.finished[:, None]
    ends = offered & (new[..., None] == rows.end_tokens).any(dim=2)
    kept = offered & (ends.cumsum(dim=1) - ends.long() == 0)
    count = kept.sum(dim=1)
    at = (rows.lengths[:, None] + step)[kept]
    row = torch.arange(len(new), device=new.device)[:, None].expand_as(kept)[kept]
    rows.sequences[row, at] = new[kept]
    accepted = torch.minimum(verdict.accepted, count)
    rejected = (accepted < torch.minimum(deepest, count)).long()
    ones = torch.ones_like(count)
    counted = torch.stack([ones, drafted, accepted, rejected, count], dim=1)
    rows.counters.add_(counted * ~rows.finished[:, None])
    rows.lengths.add_(count)
    rows.finished.logical_or_(ends.any(dim=1) | (rows.lengths >= rows.limits))


def check_commit(rows: RowState, verdict: Accepted, drafted: Tensor, deepest: Tensor) -> None:
    """Raises a KernelInputError for inputs of `commit` that do not belong together."""
    names = ("sequences", "lengths", "limits", "finished", "counters", "end_tokens")
    tensors: dict[str, Tensor | None] = {name: getattr(rows, name) for name in names}
    tensors |= {
        "accepted": verdict.accepted,
        "tokens": verdict.tokens,
        "drafted": drafted,
        "deepest": deepest,
    }
    check_together(tensors)
    if rows.sequences.dim() != 2 or verdict.tokens.dim() != 2:
        raise KernelInputError(
            f"sequences and tokens must be [B, W] and [B, d+1], not {list(rows.sequences.shape)} and "
            f"{list(verdict.tokens.shape)}"
        )
    count, width = rows.sequences.shape
    check("sequences", rows.sequences, (count, width), torch.int64, layout="rows")
    for name in ("lengths", "limits"):
        check(name, tensors[name], (count,), torch.int64)
    check("finished", rows.finished, (count,), torch.bool)
    check("counters", rows.counters, (count, COUNTERS), torch.int64)
    check("end_tokens", rows.end_tokens, (rows.end_tokens.numel(),), torch.int64)
    check("tokens", verdict.tokens, (count, verdict.tokens.shape[1]), torch.int64)
    for name in ("accepted", "drafted", "deepest"):
        check(name, tensors[name], (count,), torch.int64)
    if not 0 < verdict.tokens.shape[1] <= MOST_NODES:
        raise KernelInputError(f"{verdict.tokens.shape[1]} tokens a row: allowed are 1 to {MOST_NODES}")
    if len(rows.end_tokens) > MOST_END_TOKENS:
        raise KernelInputError(f"{len(rows.end_tokens)} end tokens: allowed are up to {MOST_END_TOKENS}")

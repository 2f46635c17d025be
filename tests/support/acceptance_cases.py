"""Inputs of the acceptance kernels, and how their verdicts are compared."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from interpreter import guarded
from torch import Tensor

from selfspec_kernels.accept_reference import Accepted, Sampling
from selfspec_kernels.noise import Noise, stream_keys

NAN = float("nan")


@dataclass(frozen=True)
class Case:
    rows: int = 2
    vocabulary: int = 150
    candidates: int = 3
    dtype: torch.dtype = torch.float32
    tree: bool = False
    noisy: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    found: bool = False
    """Tokens of every other row were found, not drawn."""
    apart: bool = False
    """Nothing is contiguous."""
    equal: bool = False
    """Every score occurs several times, and -0.0 beside 0.0."""
    slow: bool = False
    """Candidates for what passes the filters never fit where they are written down."""
    shuffled: bool = False
    """Programs run in another order."""


def settings_of(case: Case) -> Sampling:
    def each(value: float | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None if value is None else torch.full((case.rows,), value, dtype=dtype)

    return Sampling(each(case.temperature), each(case.top_k, torch.int32), each(case.top_p), each(case.min_p))


def noise_of(case: Case, width: int, stream: int = 0) -> Noise:
    positions = torch.arange(case.rows)[:, None] * 11 + torch.arange(width)
    if case.apart:
        positions = positions.t().contiguous().t()
    return Noise(stream_keys(3, torch.arange(case.rows) + 5, stream), positions)


def logits_of(case: Case, draw: torch.Generator) -> Tensor:
    logits = torch.randn(case.rows, case.candidates + 1, case.vocabulary, generator=draw) * 2
    if case.equal:
        logits = (logits * 2).round() / 2
    return stored(logits.to(case.dtype), case)


def stored(tensor: Tensor, case: Case) -> Tensor:
    """[B, m, V] between NaN, or with rows inside positions."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if case.apart else guarded(tensor, NAN)


def difference(found: Accepted, expected: Accepted) -> float:
    """Largest difference of log-probabilities; infinity where anything else differs."""
    for field in fields(Accepted):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if one.shape != other.shape or (one.dtype == torch.int64 and not torch.equal(one, other)):
            return float("inf")
    apart = (found.logprobs - expected.logprobs).abs()
    return float(apart.max()) if apart.isfinite().all() else float("inf")

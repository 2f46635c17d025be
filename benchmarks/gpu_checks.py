"""Kernels against their references: how errors are measured, and all checks there are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from gpu_bench import Bench
from torch import Tensor

from selfspec_kernels.noise import Noise, stream_keys

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
INFINITY, NAN = float("inf"), float("nan")
LIMIT = {BF16: 2**-6, FP16: 2**-8, FP32: 1e-4}
"""The largest difference over the largest output may be this: two last bits."""


@dataclass(frozen=True)
class Check:
    """A kernel on some inputs: the error that it makes, and the most that it may."""

    kernel: str
    name: str
    error: Callable[[Bench], float]
    limit: float


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is handed out holds NaN, and integers that no index has: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value; infinity where something is not finite."""
    found, expected = found.float(), expected.float()
    difference = (found - expected).abs().amax() / expected.abs().amax().clamp(min=1e-6)
    return float(difference) if bool(found.isfinite().all()) else INFINITY


def normal(bench: Bench, *shape: int, dtype: torch.dtype = FP32, scale: float = 1.0) -> Tensor:
    """Random numbers on the device."""
    return (torch.randn(*shape, device=bench.device) * scale).to(dtype)


def noise_of(bench: Bench, rows: int, width: int) -> Noise:
    """Noise at positions of their own."""
    keys = stream_keys(7, torch.arange(rows) + 3).to(bench.device)
    return Noise(keys, torch.arange(rows * width, device=bench.device).view(rows, width) * 5 + 1)

"""How `verify_attention` is cut into Triton programs: import this only where triton is installed."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import interpreted, on, options
from selfspec_kernels.verify_attention_kernels import combine_kernel, span_kernel

SPAN = 512
"""Slots of a program: 16k tokens over 8 key heads make 256 programs."""
TOGETHER = 8


@dataclass(frozen=True)
class Plan:
    """How one pass is cut."""

    block_m: int
    """Queries a program."""
    block_n: int
    """Slots a step."""
    warps: int
    stages: int
    span: int = SPAN


def plan(size: int, dtype: torch.dtype) -> Plan:
    """The same for every width, batch and capacity: another tile would add up in another order."""
    if dtype == torch.float32:
        return Plan(16, 32, 4 if size <= 64 else 8, 2)
    return Plan(32, 32, 4, 3)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scaling: float,
    tree: Tensor | None,
    depths: Tensor | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    chosen: Plan | None = None,
) -> Tensor:
    """`verify_attention` for checked inputs."""
    rows, heads, width, size = query.shape
    kv_heads, slots = key.shape[1:3]
    groups = heads // kv_heads
    chosen = chosen or plan(size, query.dtype)
    spans = triton.cdiv(slots, chosen.span)
    out = torch.empty(rows, width, heads, size, dtype=query.dtype, device=query.device)
    if not rows:
        return out
    parts: list[Tensor | None] = [None, None, None]
    if spans > 1:
        shape = (rows, heads, width, spans)
        parts = [
            torch.empty(*shape, *last, dtype=torch.float32, device=out.device) for last in ((size,), (), ())
        ]
    grid = (triton.cdiv(groups * width, chosen.block_m), rows * kv_heads, spans)
    with on(query.device):
        span_kernel[grid](
            query, key, value, lengths, tree, depths, sinks, out if spans == 1 else None, *parts,
            width, slots, heads, groups, scaling, window, softcap,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
            **constants(chosen, size), PLAIN=interpreted(), **options(chosen.warps),
        )  # fmt: skip
        if spans > 1:
            combine_kernel[rows * heads, width](
                *parts, sinks, out, width, heads, spans, **combining(size, spans), **options(4)
            )
    return out


def constants(chosen: Plan, size: int) -> dict[str, Any]:
    """The span kernel's compile-time arguments, PLAIN left out."""
    return {
        "SIZE": size,
        "SPAN": chosen.span,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "BLOCK_D": triton.next_power_of_2(size),
        "STAGES": chosen.stages,
    }


def combining(size: int, spans: int) -> dict[str, Any]:
    """The combining kernel's."""
    return {
        "SIZE": size,
        "BLOCK_D": triton.next_power_of_2(size),
        "SPANS": triton.next_power_of_2(spans),
        "TOGETHER": TOGETHER,
    }

"""How `verify_attention` is cut into Triton programs: import this only where triton is installed."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import interpreted, on, options, pdl_of, processors
from selfspec_kernels.verify_attention_kernels import combine_kernel, span_kernel
from selfspec_kernels.verify_attention_reference import Attention

SPAN = 1024
"""Slots of a program where that makes enough of them: 16k tokens over 8 key heads are 128."""
PART = 256
"""Slots of a program otherwise."""
AT_ONCE = 16
"""Pieces of a row that are read at a time where they are added up."""
_BUSY = 0.9
"""Spans are taken whole when they keep this part of the multiprocessors busy, ..."""
_SHORT = 512
"""... or when there are so few slots that a second launch would cost more than it saves."""


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
    part: int = PART
    """Slots that are summed by themselves; both decide the order of the sum."""


def plan(size: int, dtype: torch.dtype) -> Plan:
    """The same for every width, batch and capacity: another tile would add up in another order."""
    if dtype == torch.float32:
        return Plan(16, 32, 4 if size <= 64 else 8, 2)
    return Plan(32, 64, 4, 3) if size <= 128 else Plan(32, 32, 8, 3)


def attend(given: Attention, chosen: Plan | None = None, whole: bool | None = None) -> Tensor:
    """`verify_attention` on the GPU; `whole`: a program takes a whole span, not one of its parts."""
    query, key, value = given.query, given.key, given.value
    rows, heads, width, size = query.shape
    kv_heads, slots = key.shape[1:3]
    groups = heads // kv_heads
    chosen = chosen or plan(size, query.dtype)
    tiles = triton.cdiv(groups * width, chosen.block_m)
    if whole is None:
        whole = spans_whole(chosen, slots, rows * kv_heads * tiles, processors(query.device))
    taken = chosen.span if whole else chosen.part
    pieces = triton.cdiv(slots, taken)
    out = torch.empty(rows, width, heads, size, dtype=query.dtype, device=query.device)
    if not rows:
        return out
    parts: list[Tensor | None] = [None, None, None]
    direct = whole and pieces == 1
    if not direct:
        shape = (rows, heads, width, pieces)
        parts = [
            torch.empty(*shape, *last, dtype=torch.float32, device=out.device) for last in ((size,), (), ())
        ]
    pdl = pdl_of(query.device)
    with on(query.device):
        span_kernel[tiles, rows * kv_heads, pieces](
            query, key, value, given.lengths, given.tree, given.depths, given.sinks,
            out if direct else None, *parts,
            width, slots, heads, groups, given.scale, given.window, given.softcap,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
            **constants(chosen, size, taken), PLAIN=interpreted(),
            **span_options(chosen, given.tree is not None, pdl),
        )  # fmt: skip
        if not direct:
            combine_kernel[rows * heads, width](
                *parts, given.sinks, out, width, heads, pieces,
                **combining(size, chosen.span // taken), **options(1, pdl),
            )  # fmt: skip
    return out


def spans_whole(chosen: Plan, slots: int, programs: int, processors: int) -> bool:
    """Whether a program takes a span, where a span has so many programs. No bit depends on it."""
    return slots <= _SHORT or triton.cdiv(slots, chosen.span) * programs >= _BUSY * processors


def constants(chosen: Plan, size: int, taken: int) -> dict[str, Any]:
    """The span kernel's compile-time arguments, PLAIN and PDL left out; `taken` slots a program."""
    return {
        "SIZE": size,
        "SPAN": taken,
        "PART": chosen.part,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "BLOCK_D": triton.next_power_of_2(size),
        "STAGES": chosen.stages,
        "AHEAD": 2 * chosen.block_n,
    }


def span_options(chosen: Plan, tree: bool, pdl: bool) -> dict[str, Any]:
    """How the span kernel is compiled: for a tree, the compiler would rather spill a few registers than take
    those of a program that the shared memory has no room for."""
    return options(chosen.warps, pdl) | ({"maxnreg": 255} if tree else {})


def combining(size: int, parts: int) -> dict[str, Any]:
    """The combining kernel's; `parts`: pieces of a span."""
    return {
        "SIZE": size,
        "BLOCK_D": triton.next_power_of_2(size),
        "PARTS": parts,
        "TOGETHER": max(1, AT_ONCE // parts),
    }

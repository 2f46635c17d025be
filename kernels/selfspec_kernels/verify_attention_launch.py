"""How `verify_attention` is cut into Triton programs: import this only where triton is installed."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import interpreted, on, options, pdl_of, processors
from selfspec_kernels.verdict_launch import check_programs
from selfspec_kernels.verify_attention_kernels import combine_kernel, span_kernel
from selfspec_kernels.verify_attention_reference import Attention

SPAN = 1024
"""Slots of a program where that makes enough of them: 16k tokens over 8 key heads are 128."""
PART = 256
"""Slots of a program otherwise, unless even blocks are so few that they all run side by side."""
AT_ONCE = 32
"""Pieces of a row that are read at a time where they are added up."""
_BUSY = 0.9
"""Spans are taken whole when they keep this part of the multiprocessors busy."""
_RESIDENT = 2
"""Programs that a multiprocessor holds."""


@dataclass(frozen=True)
class Plan:
    """How one pass is cut."""

    block_m: int
    """Queries a program."""
    block_n: int
    """Slots a step, which are summed by themselves."""
    warps: int
    stages: int
    span: int = SPAN
    part: int = PART
    """Slots of a part of a span. With `block_n` they decide the order of the sum."""


def plan(size: int, dtype: torch.dtype) -> Plan:
    """The same for every width, batch and capacity: another tile would add up in another order."""
    if dtype == torch.float32:
        return Plan(16, 32, 4 if size <= 64 else 8, 2)
    return Plan(32, 64, 4, 3) if size <= 128 else Plan(32, 32, 8, 3)


def attend(given: Attention, chosen: Plan | None = None, piece: int | None = None) -> Tensor:
    """`verify_attention` on the GPU; `piece`: slots of a program, a span, a part or a block of the plan."""
    query, key, value = given.query, given.key, given.value
    rows, heads, width, size = query.shape
    kv_heads, slots = key.shape[1:3]
    groups = heads // kv_heads
    chosen = chosen or plan(size, query.dtype)
    tiles = triton.cdiv(groups * width, chosen.block_m)
    if piece is None:
        piece = piece_of(chosen, slots, rows * kv_heads * tiles, processors(query.device))
    pieces = triton.cdiv(slots, piece)
    check_programs("rows times key heads:", rows * kv_heads, rows * kv_heads)
    check_programs("slots:", slots, pieces)
    out = torch.empty(rows, width, heads, size, dtype=query.dtype, device=query.device)
    if not rows:
        return out
    parts: list[Tensor | None] = [None, None, None]
    # With more to mask than what comes later, registers do not last for the result in the same program.
    direct = pieces == 1 and given.tree is None and given.window is None
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
            **constants(chosen, size, piece), PLAIN=interpreted(),
            **span_options(chosen, size, given.tree is not None, pdl),
        )  # fmt: skip
        if not direct:
            combine_kernel[rows * heads, width](
                *parts, given.lengths, given.sinks, out, width, slots, heads, pieces, given.window,
                **combining(chosen, size, piece, pieces), **combine_options(size, pdl),
            )  # fmt: skip
    return out


def piece_of(chosen: Plan, slots: int, programs: int, processors: int) -> int:
    """Slots of a program, where a piece of that many has so many programs. No bit depends on it."""
    if triton.cdiv(slots, chosen.span) * programs >= _BUSY * processors:
        return chosen.span
    blocks = triton.cdiv(slots, chosen.block_n) * programs
    return chosen.block_n if blocks <= _RESIDENT * processors else chosen.part


def constants(chosen: Plan, size: int, piece: int) -> dict[str, Any]:
    """The span kernel's compile-time arguments, PLAIN and PDL left out; `piece` slots a program."""
    return {
        "SIZE": size,
        "PIECE": piece,
        "PART": chosen.part,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "BLOCK_D": triton.next_power_of_2(size),
        "STAGES": chosen.stages,
        "AHEAD": min(piece, 2 * chosen.block_n),
    }


def span_options(chosen: Plan, size: int, tree: bool, pdl: bool) -> dict[str, Any]:
    """How the span kernel is compiled: for a tree or a large head, the compiler would rather spill a few
    registers than take those of a program that the shared memory has no room for."""
    return options(chosen.warps, pdl) | ({"maxnreg": 255} if tree or size > 64 else {})


def combining(chosen: Plan, size: int, piece: int, pieces: int) -> dict[str, Any]:
    """The combining kernel's, PDL left out; a row has so many pieces."""
    blocks = max(1, chosen.part // piece)
    parts = min(chosen.span // max(chosen.part, piece), triton.next_power_of_2(triton.cdiv(pieces, blocks)))
    spans = triton.next_power_of_2(triton.cdiv(pieces, parts * blocks))
    return {
        "SIZE": size,
        "BLOCK_D": triton.next_power_of_2(size),
        "PIECE": piece,
        "BLOCK_N": chosen.block_n,
        "BLOCKS": blocks,
        "PARTS": parts,
        "SPANS": max(1, min(AT_ONCE // (parts * blocks), spans)),
    }


def combine_options(size: int, pdl: bool) -> dict[str, Any]:
    """How the combining kernel is compiled: a thread holds AT_ONCE times four numbers."""
    return options(max(1, size // 128), pdl)

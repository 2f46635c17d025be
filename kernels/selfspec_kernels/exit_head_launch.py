"""How `exit_head` is cut into Triton programs: import this only where triton is installed."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.exit_head_kernels import choose_kernel, head_kernel
from selfspec_kernels.exit_head_reference import Choices, Head
from selfspec_kernels.launching import interpreted, on, options, pdl_of
from selfspec_kernels.noise import Noise
from selfspec_kernels.row_norm_launch import normalized
from selfspec_kernels.verdict_launch import check_programs

ROWS = 16
"""Rows a program: as few as tensor cores take."""
ENTRIES = 4096
"""Entries that the last choice reads at a time."""
AHEAD = 65_536
"""Bytes of weights that a program asks for while the kernel before it ends."""


@dataclass(frozen=True)
class Plan:
    """How the product is cut."""

    block_n: int
    """Tokens a program."""
    block_d: int
    """Inputs a step."""
    warps: int
    stages: int


def plan(dtype: torch.dtype, weight: torch.dtype) -> Plan:
    """The same for all sizes, so that a row's bits depend on neither rows nor shortlist."""
    if dtype == torch.float32:
        return Plan(64, 32, 4, 3)
    return Plan(64, 128, 4, 3 if weight == torch.int8 else 4)


def choose(
    hidden: Tensor,
    head: Head,
    count: int,
    temperature: Tensor | None,
    noise: Noise | None,
    chosen: Plan | None = None,
) -> Choices:
    """`exit_head` for checked inputs."""
    batch, width, inputs = hidden.shape
    rows, device = batch * width, hidden.device
    choices = Choices(
        torch.empty(batch, width, count, dtype=torch.int64, device=device),
        *(torch.empty(batch, width, count, dtype=torch.float32, device=device) for _ in range(2)),
    )
    if not rows:
        return choices
    chosen = chosen or plan(hidden.dtype, head.weight.dtype)
    tokens = len(head.weight if head.shortlist is None else head.shortlist)
    blocks = triton.cdiv(tokens, chosen.block_n)
    check_programs("a vocabulary of", tokens, blocks)
    best = [torch.empty(rows, blocks, count, dtype=torch.float32, device=device) for _ in range(2)]
    best.append(torch.empty(rows, blocks, count, dtype=torch.int32, device=device))
    sums = [torch.empty(rows, blocks, dtype=torch.float32, device=device) for _ in range(2)]
    with on(device):
        x = _normalized(hidden, head)
        pdl = pdl_of(device)
        fixed = constants(chosen, count, inputs * head.weight.itemsize) | {"PLAIN": interpreted()}
        head_kernel[triton.cdiv(rows, ROWS), blocks](
            x, head.weight, head.scale, head.bias, head.shortlist, temperature,
            noise.keys if noise else None, noise.positions if noise else None, *best, *sums,
            rows, width, tokens, inputs, head.weight.stride(0),
            *(noise.positions.stride() if noise else (0, 0)), head.multiplier, head.softcap,
            **fixed, **options(chosen.warps, pdl),
        )  # fmt: skip
        choose_kernel[(rows,)](
            *best, *sums, choices.tokens, choices.scores, choices.logprobs, blocks,
            COUNT=count, BLOCKS=_power(blocks), ENTRIES=ENTRIES, **options(8, pdl),
        )  # fmt: skip
    return choices


def constants(chosen: Plan, count: int, row: int) -> dict[str, Any]:
    """The head kernel's compile-time arguments, PLAIN and PDL left out; `row`: bytes of a row of weights."""
    ahead = min(AHEAD // chosen.block_n, 1 << (row.bit_length() - 1))
    return {
        "ROWS": ROWS,
        "COUNT": count,
        "BLOCK_N": chosen.block_n,
        "BLOCK_D": chosen.block_d,
        "STAGES": chosen.stages,
        "AHEAD": ahead if ahead >= 128 else 0,  # in whole lines of the cache
    }


def _normalized(hidden: Tensor, head: Head) -> Tensor:
    norm, calibration = head.norm, head.calibration
    if norm is None and calibration is None:
        return hidden.contiguous()
    if calibration is None:
        return normalized(hidden, norm)
    return normalized(hidden, norm, calibration.down, calibration.up)


def _power(size: int) -> int:
    return max(16, triton.next_power_of_2(size))

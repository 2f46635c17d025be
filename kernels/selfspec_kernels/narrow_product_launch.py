"""How `narrow_product` is cut into Triton programs: import this only where triton is installed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from selfspec_kernels.launching import interpreted, on, options, pdl_of, processors
from selfspec_kernels.narrow_product_kernels import gated_kernel, product_kernel
from selfspec_kernels.narrow_product_reference import MOST_ROWS, Activation

ROW_TILES = (16, 32, MOST_ROWS)
"""Rows a program: 16 are as few as tensor cores take."""
SHARED_MEMORY = 232_448
"""Bytes that a program may have on sm_90; those of a multiprocessor are 1,024 more, and each program
takes 1,024 of them for itself."""
MOST_STAGES = 6
AHEAD = 65_536
"""Bytes of weights that a program asks for while the kernel before it ends: 8 MB of an H100, 3 us of its
bandwidth, which is what lies between two kernels."""
_BUSY = 0.45
"""A wider block is taken when its programs still keep this part of the multiprocessors busy: half of those of
an H100 draw nine tenths of its bandwidth, if each has enough bytes under way, and few read x less often."""
_BUSY_GATED = 0.8
"""The same for 128 outputs of two matrices."""


@dataclass(frozen=True)
class Plan:
    """How a product is launched, whatever the number of its rows."""

    block_n: int
    """Outputs a program, of each matrix that it streams."""
    block_k: int
    """Inputs a step."""
    warps: int
    slices: int
    """1, or as many as warps: each sums its own part of every step."""
    stages: int


TILES = (
    # block_n, block_k, warps, slices
    (16, 256, 4, 4),
    (16, 512, 4, 4),
    (16, 512, 8, 8),
    (32, 128, 4, 4),
    (32, 256, 4, 4),
    (32, 256, 8, 8),
    (32, 512, 8, 8),
    (32, 256, 4, 1),
    (64, 64, 4, 1),
    (64, 128, 4, 1),
    (64, 256, 4, 1),
    (128, 64, 4, 1),
    (128, 128, 8, 1),
)
"""Of 16-bit weights."""


def plan(n: int, k: int, dtype: torch.dtype, processors: int, streams: int = 1) -> Plan:
    """The launch for n outputs of k inputs; `streams` are the matrices a program reads, 2 for a gated one."""
    block_n = next((wide for wide in (64, 32) if triton.cdiv(n, wide) >= _BUSY * processors), 16)
    if dtype == torch.float32:
        tile = (block_n, 64 if block_n < 64 else 32, 4, 1)
    elif streams == 2 and triton.cdiv(n, 128) >= _BUSY_GATED * processors:
        tile = (128, 128, 8, 1)
    elif block_n == 64:
        # The fewer the programs, the more bytes each must have under way.
        few = streams == 1 and triton.cdiv(n, 64) < 0.6 * processors
        tile = (64, 256 if few else 128, 4, 1)
    else:
        tile = (block_n, 256, 4, 4)
    return _filled(Plan(*tile, MOST_STAGES), n, dtype, processors, streams)


def candidates(n: int, k: int, dtype: torch.dtype, processors: int, streams: int = 1) -> list[Plan]:
    """Plans worth timing, the default first; each with at least 3 stages."""
    default = plan(n, k, dtype, processors, streams)
    plans = [default, *(replace(default, stages=stages) for stages in (3, 4) if stages < default.stages)]
    if dtype != torch.float32:
        for tile in TILES:
            if streams * tile[0] * tile[1] > 4096 * tile[2]:  # on sm_80 registers would be spilled
                continue
            if 2.5 * triton.cdiv(n, tile[0]) >= processors and tile[1] <= max(64, k):
                plans.append(_filled(Plan(*tile, MOST_STAGES), n, dtype, processors, streams))
    return [one for one in dict.fromkeys(plans) if one.stages >= 3 or one == default]


def fitted(chosen: Plan, tile: int, dtype: torch.dtype, streams: int, room: int) -> Plan:
    """The plan with as many of its stages as `room` bytes hold for `tile` rows: no result depends on them."""
    stages = chosen.stages
    while stages > 2 and bytes_of(replace(chosen, stages=stages), tile, dtype, streams) > room:
        stages -= 1
    return replace(chosen, stages=stages)


def product(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residual: Tensor | None = None,
    multiplier: float = 1.0,
    chosen: Plan | None = None,
) -> Tensor:
    """`narrow_product` for checked x [m, K] and residual [m, N]; by `plan` unless a plan is handed over."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    (m, k), sizes = x.shape, [len(weight) for weight in weights]
    n = sum(sizes)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not m:
        return out
    if residual is not None and residual.stride(-1) != 1:
        residual = residual.contiguous()
    chosen = chosen or plan(n, k, x.dtype, processors(x.device))
    none = [None] * (3 - len(sizes))
    sizes += [0] * len(none)
    blocks = sum(triton.cdiv(size, chosen.block_n) for size in sizes)
    strides = [weight.stride(0) for weight in weights] + [0] * len(none)
    tile = row_tile(m, chosen, x.dtype, 1)
    with on(x.device):
        product_kernel[triton.cdiv(m, tile), blocks](
            x, *weights, *none, *biases, *none, residual, out, m, k, *sizes, x.stride(0), *strides,
            0 if residual is None else residual.stride(0), n, float(multiplier),
            **_fixed(chosen, tile, x, 1),
        )  # fmt: skip
    return out


def gated(x: Tensor, gate: Tensor, up: Tensor, activation: Activation, chosen: Plan | None = None) -> Tensor:
    """`gated_product` for checked x [m, K]; by `plan` unless a plan is handed over."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    (m, k), n = x.shape, len(gate)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not m:
        return out
    chosen = chosen or plan(n, k, x.dtype, processors(x.device), streams=2)
    tile = row_tile(m, chosen, x.dtype, 2)
    with on(x.device):
        gated_kernel[triton.cdiv(m, tile), triton.cdiv(n, chosen.block_n)](
            x, gate, up, out, m, k, n, x.stride(0), gate.stride(0), up.stride(0), n,
            KIND=activation, **_fixed(chosen, tile, x, 2),
        )  # fmt: skip
    return out


def constants(chosen: Plan, tile: int, k: int, dtype: torch.dtype, streams: int) -> dict[str, Any]:
    """The kernels' compile-time arguments, PLAIN, PDL and KIND left out."""
    row = k * dtype.itemsize
    ahead = min(AHEAD // (streams * chosen.block_n), 1 << (row.bit_length() - 1))
    return {
        "ROWS": tile,
        "BLOCK_N": chosen.block_n,
        "BLOCK_K": chosen.block_k,
        "SLICES": chosen.slices,
        "EVEN_K": k % chosen.block_k == 0,
        "STAGES": chosen.stages,
        "AHEAD": ahead if ahead >= 128 else 0,  # in whole lines of the cache
    }


def row_tile(m: int, chosen: Plan, dtype: torch.dtype, streams: int) -> int:
    """Rows a program, for m rows: no more than its sums find registers for, 64 a thread."""
    columns = streams * chosen.block_n * chosen.slices
    # Three products of tf32 stand for one of fp32: their operands take the other half.
    most = (64 if dtype.itemsize == 2 else 32) * 32 * chosen.warps // columns
    fits = [tile for tile in ROW_TILES if tile <= max(most, ROW_TILES[0])]
    return next((tile for tile in fits if m <= tile), fits[-1])


def _fixed(chosen: Plan, tile: int, x: Tensor, streams: int) -> dict[str, Any]:
    room = _shared_memory(x.device.index) if x.is_cuda else SHARED_MEMORY
    chosen = fitted(chosen, tile, x.dtype, streams, room)
    fixed = constants(chosen, tile, x.shape[1], x.dtype, streams) | {"PLAIN": interpreted()}
    return fixed | options(chosen.warps, pdl_of(x.device))


@cache
def _shared_memory(device: int) -> int:
    """Bytes that a program may have."""
    return int(triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"])


def _filled(chosen: Plan, n: int, dtype: torch.dtype, processors: int, streams: int) -> Plan:
    """With the most stages at which all programs run at once: they share the memory, so they end together.

    As far as that leaves each program 3 stages: fewer do not keep the memory busy.
    """
    together = min(4, triton.cdiv(triton.cdiv(n, chosen.block_n), processors))
    for programs in range(together, 0, -1):
        room = (SHARED_MEMORY + 1024) // programs - 1024
        plan = fitted(chosen, ROW_TILES[0], dtype, streams, room)
        if plan.stages >= 3:
            break
    return plan


def bytes_of(chosen: Plan, tile: int, dtype: torch.dtype, streams: int) -> int:
    """Shared memory: a step for each stage but one, and for that too where tensor cores read it directly."""
    step = (streams * chosen.block_n + tile) * chosen.block_k * dtype.itemsize
    direct = chosen.slices == 1 and chosen.block_n >= 64
    ahead = step * (chosen.stages if direct else chosen.stages - 1)
    # Where the slices are added up: never more than this.
    adding = chosen.slices * chosen.block_n * tile * 4 if chosen.slices > 1 else 0
    return max(ahead, adding) + 1024

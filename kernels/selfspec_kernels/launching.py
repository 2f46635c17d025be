"""What every launch needs: import this only where triton is installed.

Programmatic dependent launch (PDL, from sm_90): a kernel's programs take their places while the kernel before
it still drains, instead of after it. How a kernel takes part, with `overlap_kernels`:

1. It has a last argument `PDL: tl.constexpr`, and is launched with `**options(warps, pdl_of(device))`, which
   gives it both that constant and Triton's `launch_pdl`.
2. Its first line is `allow_next(PDL)`: the next kernel may take places as soon as all programs are running.
3. Then come addresses, and loads of what no kernel ever writes: weights, their scales and biases. What
   another kernel may be writing is not loaded, at most brought to L2, which is coherent, by `request(...)`.
   The one exception is a hint, a number that says what to request: it may be old, so nothing else may depend
   on it, and it is loaded with `.cg`, past the first-level cache, where a later load would find it as it was.
4. `await_previous(PDL)` stands before the first load of anything else, before every store and before every
   return, in all programs. What kernel N wrote is there for N + 2 only because N + 1 waited before it ended;
   and a buffer may be taken again by whoever has waited.

A kernel without all this is safe before, between and behind such kernels: it starts when they have ended.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton

from selfspec_kernels.overlap import overlapping


@triton.jit
def _nothing() -> None:
    pass


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return not isinstance(_nothing, triton.JITFunction)


def can_run_on(device: torch.device) -> bool:
    """A CUDA device, or anywhere under Triton's interpreter."""
    return device.type == "cuda" or interpreted()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device, 1 elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def pdl_of(device: torch.device) -> bool:
    """Whether kernels on a device are launched with PDL: on Hopper and later, inside of `with_overlap`."""
    return device.type == "cuda" and overlapping() and not interpreted() and _has_pdl(device)


@cache
def _has_pdl(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def options(warps: int, pdl: bool | None = None) -> dict[str, Any]:
    """How Triton compiles: what is to be a fused multiply-add says so, nothing else becomes one.

    `pdl`: as `pdl_of` says; None for a kernel that has no argument PDL.
    """
    overlap = {} if pdl is None else {"PDL": pdl, "launch_pdl": pdl}
    return {"num_warps": warps, "enable_fp_fusion": False, **overlap}


def all_registers(warps: int) -> dict[str, int]:
    """More options, for a program alone on its multiprocessor: ptxas would rather spill, to fit another."""
    return {"maxnreg": min(255, 2048 // warps)}

"""What every launch needs: import this only where triton is installed."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton


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


def options(warps: int) -> dict[str, Any]:
    """How Triton compiles: what is to be a fused multiply-add says so, nothing else becomes one."""
    return {"num_warps": warps, "enable_fp_fusion": False}

"""What the launches of acceptance share: the verdict that they fill, and the sizes of their programs."""

import torch
import triton

from selfspec_kernels.accept_reference import Accepted
from selfspec_kernels.backend import KernelInputError

MOST_PROGRAMS = 65_535
"""Of one launch along its second axis, or its third."""


def empty_verdict(rows: int, width: int, device: torch.device) -> Accepted:
    """For a kernel to fill: `width` columns."""
    return Accepted(
        torch.empty(rows, dtype=torch.int64, device=device),
        torch.empty(rows, width, dtype=torch.int64, device=device),
        torch.empty(rows, width, dtype=torch.float32, device=device),
        torch.empty(rows, width, dtype=torch.int64, device=device),
    )


def covering(nodes: int, parts: int) -> dict[str, int]:
    """Powers of two for the kernels that hold all nodes, and all parts of each."""
    return {"NODES": max(16, triton.next_power_of_2(nodes)), "PARTS": triton.next_power_of_2(parts)}


def check_programs(name: str, size: int, programs: int) -> None:
    """A launch has room for `programs` along an axis that is not the first.

    Args:
        name, size: what takes so many of them.

    Raises:
        KernelInputError: otherwise.
    """
    if programs > MOST_PROGRAMS:
        raise KernelInputError(
            f"{name} {size}: its launch would take {programs} programs along one axis, of which CUDA has "
            f"{MOST_PROGRAMS}"
        )

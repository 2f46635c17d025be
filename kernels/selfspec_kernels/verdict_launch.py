"""What the launches of acceptance share: the verdict that they fill, and the sizes of their programs."""

import torch
import triton

from selfspec_kernels.accept_reference import Accepted


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

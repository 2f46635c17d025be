"""What a decoder layer's products in 4 bits take, with its checks, and the same products in plain PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.low_bit_product_reference import check_product, reference_product

MOST_MATRICES = 3
Activation = Literal["silu", "gelu_tanh", "gelu"]


@dataclass(frozen=True)
class PackedMatrix:
    """W [N, K] in 4 bits."""

    packed: Tensor
    """Levels from `pack_levels`."""
    scales: Tensor
    """[K / g, N, 2] from `pack_scales`, in the dtype of x."""
    bias: Tensor | None = None
    """[N], in the dtype of x."""

    @property
    def outputs(self) -> int:
        """N."""
        return self.scales.shape[1]


def reference_products(
    x: Tensor, matrices: Sequence[PackedMatrix], residual: Tensor | None, multiplier: float
) -> Tensor:
    """`low_bit_products` for x [m, K] and residual [m, N1 + N2 + N3] in plain PyTorch."""
    parts = [reference_product(x, matrix.packed, matrix.scales, matrix.bias) for matrix in matrices]
    return added(torch.cat(parts, dim=-1), residual, multiplier)


def reference_gated(x: Tensor, gate: PackedMatrix, up: PackedMatrix, activation: Activation) -> Tensor:
    """`low_bit_gated` for x [m, K] in plain PyTorch."""
    first, second = (reference_product(x, one.packed, one.scales, one.bias) for one in (gate, up))
    return multiplied(first, second, activation)


def added(product: Tensor, residual: Tensor | None, multiplier: float) -> Tensor:
    """residual + product * multiplier, rounded after each step."""
    if multiplier != 1.0:
        product = product * multiplier
    return product if residual is None else residual + product


def multiplied(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up, rounded after each step."""
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def check_matrices(x: Tensor, matrices: Sequence[PackedMatrix]) -> None:
    """Raises a ValueError for matrices that x [..., K] cannot be multiplied with in one call."""
    if not 1 <= len(matrices) <= MOST_MATRICES:
        raise KernelInputError(f"{len(matrices)} matrices: allowed are 1 to {MOST_MATRICES}")
    for matrix in matrices:
        check_product(x, matrix.packed, matrix.scales, matrix.bias)
    groups = {x.shape[-1] // len(matrix.scales) for matrix in matrices}
    if len(groups) > 1:
        raise KernelInputError(f"the matrices have groups of {sorted(groups)} inputs: one size is allowed")

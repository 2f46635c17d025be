"""What `narrow_product` and `gated_product` take, and the same products in plain PyTorch."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_kernels.backend import KernelInputError, check, check_together

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_MATRICES = 3
MOST_ROWS = 64
"""The most rows of one program: beyond them (for some plans beyond 16 or 32) weights are read again."""
Activation = Literal["silu", "gelu_tanh", "gelu"]


def reference_product(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    residual: Tensor | None = None,
    multiplier: float = 1.0,
) -> Tensor:
    """`narrow_product` in plain PyTorch: sums in fp32."""
    biases = [None] * len(weights) if biases is None else biases
    out = torch.cat([_rounded(x, *pair) for pair in zip(weights, biases, strict=True)], dim=-1)
    return out if residual is None else residual + out * multiplier


def reference_gated(x: Tensor, gate: Tensor, up: Tensor, activation: Activation = "silu") -> Tensor:
    """`gated_product` in plain PyTorch: sums in fp32."""
    g, u = _rounded(x, gate), _rounded(x, up)
    if activation == "silu":
        return F.silu(g) * u
    return F.gelu(g, approximate="tanh" if activation == "gelu_tanh" else "none") * u


def _rounded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def check_product(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    residual: Tensor | None,
    multiplier: float,
) -> None:
    """Raises a KernelInputError for inputs of `narrow_product` that do not belong together."""
    if not 1 <= len(weights) <= MOST_MATRICES:
        raise KernelInputError(f"{len(weights)} weights: allowed are 1 to {MOST_MATRICES}")
    if len(biases) != len(weights):
        raise KernelInputError(f"{len(biases)} biases for {len(weights)} weights: one each, or None")
    named = {f"weight {i}": weight for i, weight in enumerate(weights)}
    check_matrices(x, named)
    bias_of = {f"bias {i}": bias for i, bias in enumerate(biases)}
    check_together({"x": x, **named, **bias_of, "residual": residual})
    for (name, bias), weight in zip(bias_of.items(), weights, strict=True):
        check(name, bias, (len(weight),), x.dtype, torch.float32)
    outputs = sum(len(weight) for weight in weights)
    check("residual", residual, (*x.shape[:-1], outputs), x.dtype, layout="any")
    if residual is None and multiplier != 1.0:
        raise KernelInputError(f"a multiplier of {multiplier} needs a residual: nothing else is multiplied")


def check_matrices(x: Tensor, matrices: dict[str, Tensor]) -> None:
    """Raises a KernelInputError for matrices [N, K], by name, that x [..., K] cannot be multiplied with."""
    if x.dim() == 0 or x.shape[-1] == 0 or x.dtype not in DTYPES:
        raise KernelInputError(f"x must be [..., K] in bf16, fp16 or fp32, not {x.dtype} {list(x.shape)}")
    for name, matrix in matrices.items():
        if matrix.dim() != 2 or not len(matrix):
            raise KernelInputError(f"{name} must be [N, K] with N above 0, not {list(matrix.shape)}")
        check(name, matrix, (len(matrix), x.shape[-1]), x.dtype, layout="rows")

"""x W^T for few rows, with what surrounds it in a decoder layer: reference and dispatcher.

The weights are read once, and that bounds the time: 4096 x 14336 in bf16 is 117.4 MB. So what a layer does
around its products goes into the same launch: the query, key and value projections are one call, the
residual is added where a product is finished, and the gated half of an MLP hands over what its down
projection reads. Each rounding stands where the model's own modules have it.

A row's bits depend on neither the number of rows nor the rows beside it.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_kernels.backend import Backend, KernelInputError, check, check_together, choose_backend

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_MATRICES = 3
MOST_ROWS = 64
"""The most rows of one program: beyond them (for some plans beyond 16 or 32) weights are read again."""
Activation = Literal["silu", "gelu_tanh", "gelu"]


def narrow_product(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    residual: Tensor | None = None,
    multiplier: float = 1.0,
    backend: Backend | None = None,
) -> Tensor:
    """x times every matrix, side by side, in x's dtype: [..., N1 + N2 + N3].

    Args:
        x: [..., K], bf16, fp16 or fp32. Made for 1 to 16 rows, good up to 64.
        weights: 1 to 3 matrices [N, K] in x's dtype; their rows may lie apart.
        biases: [N] for each matrix, in x's dtype or fp32, or None; added before the result is rounded.
        residual: [..., N1 + N2 + N3] in x's dtype, to which the rounded product is added.
        multiplier: of the rounded product, before the residual is added (Granite's residual_multiplier).
        backend: "triton" or "reference"; by default Triton on CUDA devices of capability 8.0 and above, the
            reference elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, a multiplier without
            a residual, or a backend that is unknown or cannot run where x is.
    """
    weights = list(weights)
    biases = [None] * len(weights) if biases is None else list(biases)
    _check_product(x, weights, biases, residual, multiplier)
    if choose_backend(backend, "x", x) == "reference":
        return reference_product(x, weights, biases, residual, multiplier)
    from selfspec_kernels import narrow_product_launch  # here, because triton is not there on every system

    rows = x.reshape(-1, x.shape[-1])
    outputs = sum(len(weight) for weight in weights)
    added = None if residual is None else residual.reshape(-1, outputs)
    out = narrow_product_launch.product(rows, weights, biases, added, multiplier)
    return out.view(*x.shape[:-1], outputs)


def gated_product(
    x: Tensor, gate: Tensor, up: Tensor, *, activation: Activation = "silu", backend: Backend | None = None
) -> Tensor:
    """act(x gate^T) * (x up^T), [..., N] in x's dtype; both products and the activation are rounded.

    Args:
        x: [..., K], bf16, fp16 or fp32. Made for 1 to 16 rows, good up to 64.
        gate, up: [N, K] in x's dtype; their rows may lie apart.
        activation: "silu", "gelu_tanh" or "gelu".
        backend: as for `narrow_product`.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, or an activation or
            a backend that is unknown, or a backend that cannot run where x is.
    """
    if activation not in get_args(Activation):
        raise KernelInputError(f"activation must be 'silu', 'gelu_tanh' or 'gelu', not {activation!r}")
    _check_matrices(x, {"gate": gate, "up": up})
    check_together({"x": x, "gate": gate, "up": up})
    check("up", up, tuple(gate.shape), x.dtype, layout="rows")
    if choose_backend(backend, "x", x) == "reference":
        return reference_gated(x, gate, up, activation)
    from selfspec_kernels import narrow_product_launch

    out = narrow_product_launch.gated(x.reshape(-1, x.shape[-1]), gate, up, activation)
    return out.view(*x.shape[:-1], len(gate))


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


def _check_product(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    residual: Tensor | None,
    multiplier: float,
) -> None:
    if not 1 <= len(weights) <= MOST_MATRICES:
        raise KernelInputError(f"{len(weights)} weights: allowed are 1 to {MOST_MATRICES}")
    if len(biases) != len(weights):
        raise KernelInputError(f"{len(biases)} biases for {len(weights)} weights: one each, or None")
    named = {f"weight {i}": weight for i, weight in enumerate(weights)}
    _check_matrices(x, named)
    bias_of = {f"bias {i}": bias for i, bias in enumerate(biases)}
    check_together({"x": x, **named, **bias_of, "residual": residual})
    for (name, bias), weight in zip(bias_of.items(), weights, strict=True):
        check(name, bias, (len(weight),), x.dtype, torch.float32)
    outputs = sum(len(weight) for weight in weights)
    check("residual", residual, (*x.shape[:-1], outputs), x.dtype, layout="any")
    if residual is None and multiplier != 1.0:
        raise KernelInputError(f"a multiplier of {multiplier} needs a residual: nothing else is multiplied")


def _check_matrices(x: Tensor, matrices: dict[str, Tensor]) -> None:
    if x.dim() == 0 or x.shape[-1] == 0 or x.dtype not in DTYPES:
        raise KernelInputError(f"x must be [..., K] in bf16, fp16 or fp32, not {x.dtype} {list(x.shape)}")
    for name, matrix in matrices.items():
        if matrix.dim() != 2 or not len(matrix):
            raise KernelInputError(f"{name} must be [N, K] with N above 0, not {list(matrix.shape)}")
        check(name, matrix, (len(matrix), x.shape[-1]), x.dtype, layout="rows")

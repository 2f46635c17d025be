"""x W^T for few rows, with what surrounds it in a decoder layer: the dispatchers.

The weights are read once, and that bounds the time: 4096 x 14336 in bf16 is 117.4 MB. So what a layer does
around its products goes into the same launch: the query, key and value projections are one call, the
residual is added where a product is finished, and the gated half of an MLP hands over what its down
projection reads. Each rounding stands where the model's own modules have it.

A row's bits depend on neither the number of rows nor the rows beside it.
"""

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from selfspec_kernels.backend import Backend, KernelInputError, check, check_together, choose_backend
from selfspec_kernels.narrow_product_reference import (
    Activation,
    check_matrices,
    check_product,
    reference_gated,
    reference_product,
)


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
    check_product(x, weights, biases, residual, multiplier)
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
    check_matrices(x, {"gate": gate, "up": up})
    check_together({"x": x, "gate": gate, "up": up})
    check("up", up, tuple(gate.shape), x.dtype, layout="rows")
    if choose_backend(backend, "x", x) == "reference":
        return reference_gated(x, gate, up, activation)
    from selfspec_kernels import narrow_product_launch

    out = narrow_product_launch.gated(x.reshape(-1, x.shape[-1]), gate, up, activation)
    return out.view(*x.shape[:-1], len(gate))

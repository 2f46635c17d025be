"""The products of a decoder layer with weights in 4 bits, in as few launches as there are dependencies.

A layer's query, key and value matrices read one x: `low_bit_products` takes them together, and adds its
result to the residual stream where a product ends a block. `low_bit_gated` is the first half of a gated MLP.
Storage is that of `low_bit_product_reference`.
"""

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from selfspec_kernels.backend import Backend, KernelInputError, check, choose_backend
from selfspec_kernels.low_bit_products_reference import (
    Activation,
    PackedMatrix,
    check_matrices,
    reference_gated,
    reference_products,
)


def low_bit_products(
    x: Tensor,
    matrices: Sequence[PackedMatrix],
    *,
    residual: Tensor | None = None,
    multiplier: float = 1.0,
    backend: Backend | None = None,
) -> Tensor:
    """x W^T + bias for one to three matrices, side by side: [..., N1 + N2 + N3] in x's dtype.

    Args:
        x: [..., K], bf16, fp16 or fp32. Made for 1 to 16 rows in 16 bits; more are done 16 at a time, and
            fp32 takes a launch a matrix.
        matrices: of K inputs in groups of one size.
        residual: [..., N1 + N2 + N3] in x's dtype, to which the rounded products are added.
        multiplier: of the rounded products (Granite's residual multiplier).
        backend: "triton" or "reference"; by default Triton on CUDA devices of capability 8.0 and above, the
            reference elsewhere.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, storage that is not contiguous, or
            a backend that is unknown or cannot run where x is.
    """
    check_matrices(x, matrices)
    outputs = sum(matrix.outputs for matrix in matrices)
    if residual is not None:
        if residual.device != x.device:
            raise KernelInputError(f"residual is on {residual.device}, x on {x.device}")
        check("residual", residual, (*x.shape[:-1], outputs), x.dtype, layout="any")
        residual = residual.reshape(-1, outputs)
    rows = x.reshape(-1, x.shape[-1])
    if choose_backend(backend, "x", x) == "reference":
        out = reference_products(rows, matrices, residual, multiplier)
    else:
        from selfspec_kernels import low_bit_products_launch

        added = None if residual is None else residual.contiguous()
        out = low_bit_products_launch.products(rows.contiguous(), matrices, added, multiplier)
    return out.view(*x.shape[:-1], outputs)


def low_bit_gated(
    x: Tensor,
    gate: PackedMatrix,
    up: PackedMatrix,
    *,
    activation: Activation,
    backend: Backend | None = None,
) -> Tensor:
    """activation(x G^T) * (x U^T), [..., N] in x's dtype, with the roundings of a model's own modules.

    Args:
        x: [..., K] as in `low_bit_products`.
        gate, up: G and U, [N, K] each, in groups of one size.
        activation: "silu", "gelu_tanh" or "gelu".
        backend: as in `low_bit_products`.

    Raises:
        ValueError: as `low_bit_products`, or an activation that is unknown.
    """
    check_matrices(x, (gate, up))
    if gate.outputs != up.outputs:
        raise KernelInputError(f"gate has {gate.outputs} outputs, up {up.outputs}")
    if activation not in get_args(Activation):
        allowed = ", ".join(map(repr, get_args(Activation)))
        raise KernelInputError(f"the activation must be one of {allowed}, not {activation!r}")
    rows = x.reshape(-1, x.shape[-1])
    if choose_backend(backend, "x", x) == "reference":
        out = reference_gated(rows, gate, up, activation)
    else:
        from selfspec_kernels import low_bit_products_launch

        out = low_bit_products_launch.gated(rows.contiguous(), gate, up, activation)
    return out.view(*x.shape[:-1], gate.outputs)

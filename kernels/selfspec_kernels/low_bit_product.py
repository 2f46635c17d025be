"""x W^T with W in 4 bits, for the few rows of a draft step: the dispatcher.

How W is stored is told in `low_bit_product_reference`. What must be read bounds the time: a floor from bytes,
not a measurement. 4096 x 14336 in bf16 is 117.4 MB; in 4 bits 36.7 MB with groups of 32, 33.0 MB with 64,
31.2 MB with 128. At the 4.3 TB/s at which an H200 copies that is 27.3 us against 8.5, 7.7 and 7.3; x and the
result are under 1 MB for 16 rows.
"""

from torch import Tensor

from selfspec_kernels.backend import Backend, choose_backend
from selfspec_kernels.low_bit_product_reference import check_product, reference_product


def low_bit_product(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None, *, backend: Backend | None = None
) -> Tensor:
    """x W^T + bias, in x's dtype.

    Args:
        x: [..., K], bf16, fp16 or fp32. Made for 1 to 16 rows; more are done 16 at a time.
        packed: levels from `pack_levels`.
        scales: [K / g, N, 2] from `pack_scales`, in x's dtype; they say what g is.
        bias: [N], in x's dtype.
        backend: "triton" or "reference"; by default Triton on CUDA devices of capability 8.0 and above, the
            reference elsewhere.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, storage that is not contiguous, or
            a backend that is unknown or cannot run where x is.
    """
    check_product(x, packed, scales, bias)
    backend = choose_backend(backend, "x", x)
    rows = x.reshape(-1, x.shape[-1])
    if backend == "reference":
        out = reference_product(rows, packed, scales, bias)
    else:
        from selfspec_kernels import low_bit_launch  # here, because triton is not there on every system

        out = low_bit_launch.product(rows.contiguous(), packed, scales, bias)
    return out.view(*x.shape[:-1], scales.shape[1])

"""The norm of every row, as it stands in front of a layer's products and of the LM head.

Roundings are those of Hugging Face's modules; only the order of the sum over a row is the kernel's own.
"""

from torch import Tensor

from selfspec_kernels.backend import Backend, check_together, choose_backend
from selfspec_kernels.row_norm_reference import Norm, check_hidden, check_norm, reference_norm


def row_norm(hidden: Tensor, norm: Norm, *, backend: Backend | None = None) -> Tensor:
    """hidden [B, m, D], normed; contiguous.

    Args:
        hidden: bf16, fp16 or fp32; contiguous in the last dimension, or it is copied.
        norm: weights in the dtype of hidden or fp32.
        backend: "triton" or "reference"; by default Triton on CUDA, the reference elsewhere.

    Raises:
        KernelInputError: shapes, dtypes or devices that do not belong together, rows that are too long, or a
            backend that is unknown or cannot run where `hidden` is.
    """
    check_hidden(hidden)
    check_together({"hidden": hidden, "norm weight": norm.weight, "norm bias": norm.bias})
    check_norm(norm, hidden.shape[-1], hidden.dtype)
    if choose_backend(backend, "hidden", hidden) == "reference":
        return reference_norm(hidden, norm)
    from selfspec_kernels import row_norm_launch

    return row_norm_launch.normalized(hidden, norm)

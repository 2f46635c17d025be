"""Which backend a kernel runs on, and the error that names what it cannot take."""

from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["triton", "reference"]

MOST_ELEMENTS = 2**31 - 1
"""Along one dimension: indices within it are int32, offsets int64."""
Layout = Literal["whole", "rows", "any"]
"""Contiguous, contiguous in the last dimension, or with any strides."""
_LEAST_CAPABILITY = (8, 0)


class KernelInputError(ValueError):
    """Inputs that do not belong together, or that a kernel is not made for: named before any launch."""


def choose_backend(backend: Backend | None, name: str, tensor: Tensor) -> Backend:
    """The backend asked for; by default Triton on CUDA devices of capability 8.0 and above.

    Args:
        name: what the tensor is called in messages.

    Raises:
        KernelInputError: the backend is unknown, or cannot run where the tensor is.
    """
    if backend is None:
        return "triton" if has_triton(tensor.device) else "reference"
    if backend not in get_args(Backend):
        raise KernelInputError(f"backend must be 'triton', 'reference' or None, not {backend!r}")
    if backend == "triton":
        from selfspec_kernels import launching  # here, because triton is not there on every system

        if not launching.can_run_on(tensor.device):
            raise KernelInputError(
                f"the Triton backend needs a CUDA device, {name} is on {tensor.device}; "
                "use backend='reference'"
            )
    return backend


def check_together(tensors: dict[str, Tensor | None]) -> None:
    """All tensors, by name, are on the device of the first one, and no dimension is above int32.

    Raises:
        KernelInputError: otherwise; the message names the tensor.
    """
    there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, anchor = next(iter(there.items()))
    for name, tensor in there.items():
        if tensor.device != anchor.device:
            raise KernelInputError(f"{name} is on {tensor.device}, {first} on {anchor.device}")
        if any(size > MOST_ELEMENTS for size in tensor.shape):
            raise KernelInputError(f"{name} is {list(tensor.shape)}: indices above int32 are not supported")


def check(
    name: str, tensor: Tensor | None, shape: tuple[int, ...], *dtypes: torch.dtype, layout: Layout = "whole"
) -> None:
    """A tensor, if there is one, has this shape, one of these dtypes and this layout.

    Raises:
        KernelInputError: otherwise; the message names the tensor.
    """
    if tensor is None:
        return
    if tensor.shape != shape:
        raise KernelInputError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise KernelInputError(f"{name} must be {wanted}, not {tensor.dtype}")
    if layout == "whole" and not tensor.is_contiguous():
        raise KernelInputError(f"{name} must be contiguous: it is read in the order of its storage")
    if layout == "rows" and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise KernelInputError(f"{name} must be contiguous in its last dimension, not {tensor.stride()}")


def has_triton(device: torch.device) -> bool:
    """Whether kernels run in Triton there by default: on NVIDIA GPUs of capability 8.0 and above."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY

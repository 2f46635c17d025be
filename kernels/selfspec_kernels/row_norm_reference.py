"""The norms that there are, the checks of them and of what is normed, and the same in plain PyTorch."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_kernels.backend import KernelInputError, check

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_INPUTS = 16_384
"""D: a row is held in registers."""
NormKind = Literal["rms", "rms_one", "layer"]


@dataclass(frozen=True)
class Norm:
    """A norm over the last dimension."""

    kind: NormKind
    """Llama's, rounded before the weight; Gemma's, by 1 + weight in fp32; LayerNorm."""
    weight: Tensor
    """[D]"""
    bias: Tensor | None = None
    """[D], of a LayerNorm."""
    eps: float = 1e-6


def reference_norm(hidden: Tensor, norm: Norm) -> Tensor:
    """`row_norm` for hidden [..., D] in plain PyTorch."""
    x, weight = hidden.float(), norm.weight.float()
    if norm.kind == "layer":
        bias = None if norm.bias is None else norm.bias.float()
        return F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps).to(hidden.dtype)
    x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + norm.eps)
    if norm.kind == "rms":
        return (x.to(hidden.dtype).float() * weight).to(hidden.dtype)
    return (x * (1 + weight)).to(hidden.dtype)


def check_hidden(hidden: Tensor) -> None:
    """Raises a KernelInputError for what are not hidden states [B, m, D] that the kernel takes."""
    if hidden.dim() != 3 or hidden.dtype not in DTYPES:
        raise KernelInputError(
            f"hidden must be [B, m, D] in bf16, fp16 or fp32, not {hidden.dtype} {list(hidden.shape)}"
        )
    if not 0 < hidden.shape[-1] <= MOST_INPUTS:
        raise KernelInputError(
            f"hidden states of {hidden.shape[-1]} elements: allowed are 1 to {MOST_INPUTS}"
        )


def check_norm(norm: Norm, inputs: int, dtype: torch.dtype) -> None:
    """Raises a KernelInputError for a norm that hidden states [..., inputs] of this dtype cannot have."""
    if norm.kind not in get_args(NormKind):
        raise KernelInputError(f"the norm must be 'rms', 'rms_one' or 'layer', not {norm.kind!r}")
    check("norm weight", norm.weight, (inputs,), dtype, torch.float32)
    check("norm bias", norm.bias, (inputs,), dtype, torch.float32)
    if norm.bias is not None and norm.kind != "layer":
        raise KernelInputError(f"a norm of kind {norm.kind!r} has no bias")

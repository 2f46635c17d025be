"""A model's norm as the kernels take it: recognised by what it computes, not by its name."""

from typing import Any

import torch
from torch import Tensor, nn

from selfspec_kernels.row_norm import row_norm
from selfspec_kernels.row_norm_reference import Norm, NormKind, reference_norm

_TOLERANCE = 2**-6
"""Largest difference over the largest element: a wrong kind of norm is off by far more."""
_PROBED_ROWS = 3


class LeanNorm(nn.Module):
    """A norm in one launch."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: Tensor) -> Tensor:
        return row_norm(hidden, self.norm)


def norm_of(module: nn.Module | None) -> Norm | None:
    """The norm that `module` computes over the last dimension; None where the kernels have none such."""
    if isinstance(module, LeanNorm):
        return module.norm
    weight: Any = getattr(module, "weight", None)
    if module is None or not isinstance(weight, Tensor) or weight.dim() != 1 or weight.is_meta:
        return None
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(eps, float):
        return None
    bias: Any = getattr(module, "bias", None)
    kinds: tuple[NormKind, ...] = ("layer",) if isinstance(module, nn.LayerNorm) else ("rms", "rms_one")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, _PROBED_ROWS, len(weight), generator=generator, device="cpu")
    x = x.to(weight.device, weight.dtype)
    with torch.inference_mode():
        expected = module(x).float()
        for kind in kinds:
            norm = Norm(kind, weight.detach(), bias if kind == "layer" else None, eps)
            off = (reference_norm(x, norm).float() - expected).abs().max()
            if bool(off <= _TOLERANCE * expected.abs().max()):
                return norm
    return None

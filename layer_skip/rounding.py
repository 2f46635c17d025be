"""Rounding weights to few bits in groups: pure functions of tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

REFITS = 3
"""Least-squares fits of a group's scale and zero; more change nothing."""
_CHUNK = 1 << 18
"""Weights that are rounded at a time on a CPU: few enough for a core's own cache."""
_CHUNK_ON_GPU = 1 << 24
"""And on a GPU: enough to keep it busy, and few beside the weights."""
_LEAST_SCALE = 1e-10


@dataclass(frozen=True)
class Rounded:
    """Weights [N, K] as q * scale + offset, in groups of consecutive inputs."""

    q: Tensor
    """[N, K] uint8, 0 to 2^bits - 1."""
    scale: Tensor
    """[N, K / group]"""
    offset: Tensor
    """[N, K / group], as `scale`: the weight that q = 2^(bits-1) stands for."""
    bits: int

    def weights(self) -> Tensor:
        """The weights that this stands for, [N, K] float32."""
        n, groups = self.scale.shape
        centred = self.q.float().view(n, groups, -1) - 2 ** (self.bits - 1)
        return (centred * self.scale.float()[..., None] + self.offset.float()[..., None]).view(n, -1)


def round_weights(weight: Tensor, bits: int, group: int, dtype: torch.dtype) -> Rounded:
    """Round weight [N, K] to `bits` bits in groups of `group` inputs, each with a scale and an offset.

    These are stored in `dtype`.

    Starts from the group's smallest and largest weight, then alternates between the best line through the
    chosen levels (least squares) and the nearest levels on that line. An offset costs two bytes a group and
    cuts the misses of a 4-bit draft by a quarter, against groups that are symmetric about 0.

    Raises:
        ValueError: K is not a multiple of `group`.
    """
    k = weight.shape[1]
    if k % group:
        raise ValueError(f"{k} inputs do not divide into groups of {group}")
    rows = max(1, (_CHUNK_ON_GPU if weight.is_cuda else _CHUNK) // k)
    parts = [_round(part, bits, group, dtype) for part in weight.split(rows)]
    q, scale, offset = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Rounded(q, scale, offset, bits)


def _round(weight: Tensor, bits: int, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    x = weight.float().view(len(weight), -1, group)
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / top).clamp_(min=_LEAST_SCALE)
    x_mean = x.mean(dim=-1, keepdim=True)
    centred = x - x_mean
    for _ in range(REFITS):
        q = ((x - low) / scale).round_().clamp_(0, top)
        q_mean = q.mean(dim=-1, keepdim=True)
        q -= q_mean
        spread = q.square().sum(dim=-1, keepdim=True).clamp_(min=_LEAST_SCALE)
        scale = ((q * centred).sum(dim=-1, keepdim=True) / spread).clamp_(min=_LEAST_SCALE)
        low = x_mean - scale * q_mean
    # The last choice of levels is made with the scale and offset as they are stored.
    stored_scale = scale.to(dtype)
    stored_offset = (low + middle * scale).to(dtype)
    q = ((x - stored_offset.float()) / stored_scale.float().clamp(min=_LEAST_SCALE) + middle).round_()
    return q.clamp_(0, top).to(torch.uint8).view_as(weight), stored_scale[..., 0], stored_offset[..., 0]


def round_outputs(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight [N, K] as int8 levels from -127 to 127, and the step of each output's, [N] in `dtype`."""
    exact = weight.float()
    scales = (exact.abs().amax(dim=1) / 127).to(dtype)
    # The scale of a row of zeros is 0.
    steps = scales.float().clamp(min=_LEAST_SCALE)[:, None]
    return (exact / steps).round_().clamp_(-127, 127).to(torch.int8), scales

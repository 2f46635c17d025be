"""Weights in 4 bits: how they are stored, what a product with them asks of its inputs, and its reference.

A weight is (q - 8) * scale + offset, with q from 0 to 15 and a scale and an offset for each group of 32, 64
or 128 consecutive inputs of an output. Per group, sum(x * w) = scale * sum(x * (q - 8)) + offset * sum(x),
so scales never meet single weights.

Storage, for N outputs, K inputs, groups of g:

- levels, uint8 [N, K / 2], both rounded up to whole tiles of 16 outputs and 64 inputs. The memory is that of
  [N / 16, K / 64] tiles of 512 bytes, in which every thread of a warp finds its part of a tensor-core
  instruction's operand in 16 consecutive bytes: see `pack_levels`. What is added is 0.
- scales, [K / g, N, 2] in x's dtype: scale and offset side by side, one 4-byte load for both, and groups
  first, so that neighbouring outputs are neighbours in memory. PyTorch's packed product for CPUs has them so.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = (32, 64, 128)
"""Group sizes that both backends take."""
TILE_OUTPUTS, TILE_INPUTS = 16, 64
"""What a warp multiplies at a time."""
_ZERO_LEVEL = 8


def pack_levels(q: Tensor, group: int) -> Tensor:
    """Levels q [N, K], uint8 from 0 to 15, as uint8 [N, K / 2], N to whole tiles: two levels a byte.

    Of a tile, thread 4 g + t (g < 8, t < 4) has outputs g and g + 8, each with 8 inputs from 8 t and from
    32 + 8 t. Its words are (output, bit 1 of the input), a word's halves bit 0, a half's bytes bit 2, and the
    high nibble is input 32 on: a mask finds neighbouring inputs in the halves of a word.

    Raises:
        ValueError: q is not such a matrix, or K is not a multiple of `group`.
    """
    if q.dim() != 2 or q.dtype != torch.uint8:
        raise ValueError(f"levels must be uint8 [N, K], not {q.dtype} {list(q.shape)}")
    n, k = q.shape
    _check_group(k, group)
    if q.numel() and int(q.max()) > 15:
        raise ValueError(f"levels must be from 0 to 15, found {int(q.max())}")
    whole = F.pad(q, (0, -k % TILE_INPUTS, 0, -n % TILE_OUTPUTS))
    rows, tiles = len(whole) // TILE_OUTPUTS, whole.shape[1] // TILE_INPUTS
    low, high = whole.view(rows, 2, 8, tiles, 2, 4, 2, 2, 2).unbind(4)
    # row, output 8, output, tile, thread, input's bits 2 1 0
    in_order = (low | high << 4).permute(0, 3, 2, 4, 1, 6, 7, 5)
    return in_order.reshape(len(whole), -1)


def unpack_levels(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The levels [outputs, inputs] that `pack_levels` stored."""
    rows, tiles = len(packed) // TILE_OUTPUTS, packed.shape[1] * 2 // TILE_INPUTS
    in_order = packed.view(rows, tiles, 8, 4, 2, 2, 2, 2).permute(0, 4, 2, 1, 3, 7, 5, 6)
    whole = torch.stack([in_order & 15, in_order >> 4], dim=4).reshape(len(packed), -1)
    return whole[:outputs, :inputs]


def pack_scales(scale: Tensor, offset: Tensor) -> Tensor:
    """scale and offset [N, K / g] as [K / g, N, 2]."""
    return torch.stack([scale, offset], dim=-1).transpose(0, 1).contiguous()


def reference_product(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """`low_bit_product` for x [m, K] in plain PyTorch: weights and sums in fp32, the result in x's dtype."""
    k = x.shape[-1]
    group = k // len(scales)
    levels = unpack_levels(packed, scales.shape[1], k).view(scales.shape[1], -1, group)
    scale, offset = scales.float().transpose(0, 1)[..., None].unbind(2)
    weight = (levels.float() - _ZERO_LEVEL) * scale + offset
    out = F.linear(x.float(), weight.flatten(1), None if bias is None else bias.float())
    return out.to(x.dtype)


def _check_group(inputs: int, group: int) -> None:
    if group not in GROUPS:
        raise ValueError(f"groups must be of {', '.join(map(str, GROUPS))} inputs, not {group}")
    if inputs == 0 or inputs % group:
        raise ValueError(f"{inputs} inputs do not divide into groups of {group}")


def check_product(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> None:
    """Raises a ValueError that names what does not belong to a product of x [..., K] with packed weights."""
    if x.dim() == 0 or x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"x must be [..., K] in bf16, fp16 or fp32, not {x.dtype} {list(x.shape)}")
    if packed.dim() != 2 or packed.dtype != torch.uint8:
        raise ValueError(f"packed levels must be uint8 [N, bytes], not {packed.dtype} {list(packed.shape)}")
    k = x.shape[-1]
    if scales.dim() != 3 or scales.shape[2] != 2 or not len(scales):
        raise ValueError(f"scales must be [K / group, N, 2], not {list(scales.shape)}")
    n = scales.shape[1]
    if k % len(scales):
        raise ValueError(f"{k} inputs do not divide into the {len(scales)} groups of the scales")
    group = k // len(scales)
    _check_group(k, group)
    whole = (-(-n // TILE_OUTPUTS) * TILE_OUTPUTS, -(-k // TILE_INPUTS) * TILE_INPUTS // 2)
    if packed.shape != whole:
        raise ValueError(f"levels of [{n}, {k}] are packed as {list(whole)}, not as {list(packed.shape)}")
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias must be [{n}], not {list(bias.shape)}")
    for name, tensor in (("packed", packed), ("scales", scales), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous: it is read in the order of its storage")
        if name != "packed" and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, x {x.dtype}")
